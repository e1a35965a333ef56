"""vLLM's engine arguments (EngineArgs and AsyncEngineArgs, 0.4 to 0.11) that EngineConfig has no field for, sorted.

Whatever a model.json written for vLLM may hold is known here by name, so that only a slip is an unknown argument.
"""

from __future__ import annotations

from collections.abc import Mapping

# How weights and tokenizers get here, and which code of the model's own may run.
_LOADING = """
allow_deprecated_quantization code_revision config_format hf_token ignore_patterns load_format
max_parallel_loading_workers
model_impl model_loader_extra_config pt_load_map_location safetensors_load_strategy skip_tokenizer_init tokenizer_mode
tokenizer_pool_extra_config tokenizer_pool_size tokenizer_pool_type trust_remote_code use_tqdm_on_load
"""
# Processes and devices: with one of each there is nothing to spread.
_SPREADING = """
all2all_backend cp_kv_cache_interleave_size data_parallel_address data_parallel_backend data_parallel_external_lb
data_parallel_hybrid_lb data_parallel_rank data_parallel_rpc_port data_parallel_size_local data_parallel_start_rank
dcp_kv_cache_interleave_size disable_custom_all_reduce disable_nccl_for_dp_synchronization distributed_executor_backend
distributed_timeout_seconds enable_eplb enable_expert_parallel engine_use_ray eplb_config eplb_log_balancedness
eplb_step_interval eplb_window_size expert_placement_strategy master_addr master_port nnodes node_rank
num_redundant_experts numa_bind numa_bind_nodes ray_workers_use_nsight worker_cls worker_extension_cls worker_use_ray
"""
# How vLLM schedules, compiles and stores; results do not depend on it.
_SPEED = """
additional_config attention_backend attention_config calculate_kv_scales compilation_config
cpu_offload_gb cpu_offload_params cuda_graph_sizes cudagraph_capture_sizes dbo_decode_token_threshold
dbo_prefill_token_threshold disable_async_output_proc disable_cascade_attn disable_hybrid_kv_cache_manager
disable_sliding_window enable_chunked_prefill enable_dbo enable_sleep_mode enforce_eager kernel_config
kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill mamba_block_size mamba_cache_dtype mamba_cache_mode
mamba_ssm_cache_dtype max_context_len_to_capture max_cudagraph_capture_size max_long_partial_prefills
max_num_partial_prefills max_seq_len_to_capture moe_backend multi_step_stream_outputs num_lookahead_slots
num_scheduler_steps optimization_level override_neuron_config preemption_mode prefix_caching_hash_algo
quantization_param_path scheduler_cls scheduler_delay_factor scheduler_reserve_full_isl scheduling_policy
stream_interval swap_space ubatch_size use_v2_block_manager
"""
# Logs, traces and profiles.
_LOGGING = """
collect_detailed_traces cudagraph_metrics disable_log_requests enable_layerwise_nvtx_tracing enable_log_requests
enable_logging_iteration_details enable_mfu_metrics kv_cache_metrics kv_cache_metrics_sample max_log_len
observability_config otlp_traces_endpoint profiler_config show_hidden_metrics_for_version
"""
# Images and sound, which a text model does not take.
_MEDIA = """
allowed_local_media_path allowed_media_domains disable_chunked_mm_input disable_mm_preprocessor_cache enable_mm_embeds
enable_multimodal_encoder_data_parallel interleave_mm_strings limit_mm_per_prompt media_io_kwargs
mm_encoder_attn_backend mm_encoder_only mm_encoder_tp_mode mm_processor_cache_gb mm_processor_cache_type
mm_processor_kwargs mm_shm_cache_max_object_size_mb skip_mm_profiling video_pruning_rate
"""
# Details of what a request asks for, or of a feature with a switch of its own in NOT_YET.
_DETAILS = """
default_mm_loras disable_logprobs_during_spec_decoding enable_auto_tool_choice enable_lora_bias enable_reasoning
enable_tower_connector_lora fully_sharded_loras generation_config guided_decoding_backend
guided_decoding_disable_additional_properties guided_decoding_disable_any_whitespace guided_decoding_disable_fallback
logits_processor_pattern long_lora_scaling_factors lora_dtype lora_extra_vocab_size lora_target_modules max_cpu_loras
max_logprobs max_lora_rank max_loras max_prompt_adapter_token max_prompt_adapters ngram_prompt_lookup_max
ngram_prompt_lookup_min num_speculative_tokens override_pooler_config pooler_config reasoning_parser_plugin
spec_decoding_acceptance_method speculative_disable_by_batch_size speculative_disable_mqa_scorer
speculative_draft_tensor_parallel_size speculative_max_model_len speculative_model_quantization
structured_outputs_config tool_parser_plugin tool_server typical_acceptance_sampler_posterior_alpha
typical_acceptance_sampler_posterior_threshold
"""
# What each would switch is not there to be switched. Some would change results at vLLM (dummy weights, a slower
# tokenizer, a bound on logprobs): a model.json that has them for speed or for a test is still served as it should be.
WITHOUT_MEANING = frozenset(" ".join((_LOADING, _SPREADING, _SPEED, _LOGGING, _MEDIA, _DETAILS)).split())

# Features that are not there: accepting one silently would serve something else than was asked for. Beside each, what
# asks for nothing, as complete model.json files do; None, False, "", {} and [] always do.
NOT_YET: Mapping[str, tuple[object, ...]] = {
    "convert": ("auto", "none"),
    "data_parallel_size": (1,),
    "decode_context_parallel_size": (1,),
    "enable_lora": (),
    "enable_prompt_adapter": (),
    "enable_prompt_embeds": (),
    "hf_config_path": (),
    "hf_overrides": (),
    "io_processor_plugin": (),
    "kv_events_config": (),
    "kv_transfer_config": (),
    "logits_processors": (),
    "logprobs_mode": ("raw_logprobs",),
    "lora_modules": (),
    "override_attention_dtype": (),
    "override_generation_config": (),
    "pipeline_parallel_size": (1,),
    "prefill_context_parallel_size": (1,),
    "qlora_adapter_name_or_path": (),
    "rope_scaling": (),
    "rope_theta": (),
    "speculative_config": (),
    "speculative_model": (),
    "task": ("auto", "generate", "embed", "embedding"),
    "tensor_parallel_size": (1,),
}


def asks_for_nothing(value: object, allowed: tuple[object, ...] = ()) -> bool:
    """Whether an argument has a value with which vLLM would do what is done here anyway: one of `allowed`, or none."""
    # Numbers and booleans may be strings in a model.json.
    text = str(value).strip().lower()
    neutral = {"none", "false", "", "{}", "[]"} | {str(value) for value in allowed}
    return text in neutral
