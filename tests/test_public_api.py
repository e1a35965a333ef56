"""The public interface, written down twice on purpose: a change here is a change for users."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields

import pytest

import octavo
from octavo import errors

PUBLIC_NAMES = """
AsyncEngine ChatFormat ChatPrompt CompletionOutput DeadlineExceeded EngineConfig EngineDead EngineError EngineStats
FinishReason Histogram HistogramMetric InvalidRequest LLM Logprob METRICS MessagePart MessageReader Metric MetricKind
ModelLoadError OctavoError Overloaded PartKind PoolingParams PromptTooLong RequestCancelled RequestError RequestFailed
RequestOutput RequestStream SamplingParams TextPair Timing Usage cosine_similarity default_model parse_bool parse_int
parse_json
"""

FIELDS = {
    octavo.SamplingParams: """
        n temperature top_p top_k min_p repetition_penalty frequency_penalty presence_penalty seed max_tokens min_tokens
        stop stop_token_ids include_stop_str_in_output ignore_eos logprobs prompt_logprobs logit_bias allowed_token_ids
        bad_words skip_special_tokens truncate_prompt_tokens structured_outputs
    """,
    octavo.PoolingParams: "dimensions normalize truncate_prompt_tokens prompt_name",
    octavo.EngineConfig: """
        model runner tokenizer dtype quantization kv_cache_dtype device seed max_model_len block_size max_num_seqs
        max_num_batched_tokens long_prefill_token_threshold itl_budget_s async_scheduling
        enable_prefix_caching kv_cache_memory_bytes num_gpu_blocks_override
        gpu_memory_utilization num_threads served_model_name disable_log_stats tool_call_parser reasoning_parser
        max_waiting executor engine_python step_timeout_s start_timeout_s max_restarts restart_window_s
    """,
}

# Annotations are left out: they are the type checker's business.
SIGNATURES = {
    octavo.AsyncEngine: "(config)",
    octavo.AsyncEngine.submit: (
        "(self, prompt, params=None, *, request_id=None, priority=0, deadline_s=None, cache_salt='')"
    ),
    octavo.AsyncEngine.wait_ready: "(self, timeout_s=None)",
    octavo.AsyncEngine.is_ready: "(self)",
    octavo.AsyncEngine.stats: "(self)",
    octavo.AsyncEngine.tokenize: "(self, prompt)",
    octavo.AsyncEngine.shutdown: "(self, drain_s=30.0)",
    octavo.LLM: "(model=None, **engine_args)",
    octavo.LLM.generate: "(self, prompts, sampling_params=None, *, use_tqdm=True)",
    octavo.LLM.chat: "(self, messages, sampling_params=None, *, use_tqdm=True)",
    octavo.LLM.embed: "(self, prompts, pooling_params=None, *, use_tqdm=True)",
    octavo.LLM.score: "(self, queries, documents, pooling_params=None, *, use_tqdm=True)",
    octavo.cosine_similarity: "(a, b)",
}


def _bare_signature(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(bare))


def test_the_public_names() -> None:
    assert sorted(octavo.__all__) == sorted(PUBLIC_NAMES.split())
    assert all(hasattr(octavo, name) for name in octavo.__all__)


def test_every_error_is_public() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert found <= set(octavo.__all__)


@pytest.mark.parametrize("record", FIELDS, ids=lambda record: record.__name__)
def test_the_fields_of_what_users_fill_in(record: type) -> None:
    assert [field.name for field in fields(record)] == FIELDS[record].split()


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_the_signatures_of_what_users_call(function: Callable[..., object]) -> None:
    assert _bare_signature(function) == SIGNATURES[function]


def test_the_signatures_do_not_hide_a_default() -> None:
    assert _bare_signature(lambda a, *, b=1: None) == "(a, *, b=1)"
