"""EngineConfig from arguments that were written for vLLM: what is taken, what is passed over, and what is refused."""

from __future__ import annotations

import logging

import pytest

from octavo.config import EngineConfig
from octavo.errors import InvalidRequest, ModelLoadError
from octavo.vllm_arguments import NOT_YET, WITHOUT_MEANING


def test_a_complete_file_for_vllm_is_taken_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    arguments = {
        "model": "/models/llama", "dtype": "half", "gpu_memory_utilization": "0.5", "tensor_parallel_size": 1,
        "pipeline_parallel_size": "1", "enforce_eager": True, "disable_log_requests": True, "swap_space": 4,
        "quantization": None, "kv_cache_dtype": "auto", "enable_lora": "false", "max_lora_rank": 16, "max_loras": 4,
        "max_num_seqs": None, "seed": None, "max_model_len": None, "enable_prefix_caching": None,
        "speculative_config": None, "task": "generate", "hf_overrides": {}, "limit_mm_per_prompt": {"image": 0},
        "served_model_name": ["llama", "llama-latest"], "long_prefill_token_threshold": 0, "block_size": 16,
        "trust_remote_code": True, "load_format": "auto", "revision": "main", "hf_token": "secret",
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        config = EngineConfig.from_mapping(arguments)
    expected = EngineConfig(
        model="/models/llama",
        dtype="float16",
        gpu_memory_utilization=0.5,
        served_model_name="llama",
        long_prefill_token_threshold=0,
    )
    assert config == expected
    assert [record.getMessage() for record in caplog.records] == [
        "engine arguments that have no meaning here are ignored: enforce_eager, disable_log_requests, swap_space, "
        "max_lora_rank, max_loras, limit_mm_per_prompt, trust_remote_code, load_format, hf_token"
    ]


def test_what_is_taken_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    EngineConfig.from_mapping({"dtype": "auto", "tensor_parallel_size": 1, "tokenizer_revision": "x"})
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel_size", 2), ("enable_lora", True), ("enable_lora", "True"), ("task", "classify"),
        ("speculative_config", {"method": "ngram"}), ("rope_scaling", {"factor": 2}), ("hf_overrides", {"a": 1}),
        ("data_parallel_size", "2"),
    ],
)  # fmt: skip
def test_a_feature_that_is_not_there_yet_is_named(name: str, value: object) -> None:
    with pytest.raises(ModelLoadError, match=f"engine argument {name}: .* is not supported yet; leave it out"):
        EngineConfig.from_mapping({name: value})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_modellen", "did you mean 'max_model_len'?"),
        ("gpu_memory_utilisation", "did you mean 'gpu_memory_utilization'?"),
        ("enforce_eagerly", "did you mean 'enforce_eager'?"),
        ("tensor_parallel", "did you mean 'tensor_parallel_size'?"),
        ("xyzzy", "known are model, runner, tokenizer"),
    ],
)
def test_an_unknown_argument_is_named_with_what_was_meant(name: str, said: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        EngineConfig.from_mapping({name: 1})
    assert f"unknown engine argument {name!r}; {said}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("dtype", "half", "float16"), ("dtype", "torch.bfloat16", "bfloat16"), ("dtype", "fp32", "float32"),
        ("dtype", "float", "float32"), ("device", "cuda", "cuda"), ("device", "cuda:1", "cuda:1"),
        ("device", "cuda:01", "cuda:1"), ("device", "cpu", "cpu"), ("kv_cache_dtype", "fp8", "fp8"),
        ("kv_cache_dtype", "fp8_e4m3", "fp8"), ("kv_cache_dtype", "AUTO", "auto"), ("kv_cache_dtype", "", "auto"),
        ("quantization", "fp8", "fp8"), ("quantization", "GGUF", "gguf"), ("quantization", "None", None),
        ("quantization", "", None),
    ],
)  # fmt: skip
def test_spellings(name: str, value: str, read: str | None) -> None:
    assert getattr(EngineConfig.from_mapping({name: value}), name) == read


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("quantization", "awq", "fp8, int8, int4, gguf"),
        ("quantization", "fp8_e4m3", "fp8, int8, int4, gguf"),
        ("kv_cache_dtype", "fp8_e5m2", "auto, fp8, fp8_e4m3"),
        ("kv_cache_dtype", "bfloat16", "auto, fp8, fp8_e4m3"),
    ],
)
def test_a_kind_of_quantisation_that_nobody_knows_is_refused_by_name(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ModelLoadError, match=f"engine argument {name}: '{value}' .* one of {allowed}$"):
        EngineConfig.from_mapping({name: value})


@pytest.mark.parametrize("value", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cpu:0", "auto:0", ""])
def test_a_device_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="expected one of auto, cpu, cuda, cuda:N"):
        EngineConfig(device=value)


def test_an_argument_has_one_meaning() -> None:
    fields = set(EngineConfig.__dataclass_fields__)
    assert not fields & WITHOUT_MEANING
    assert not fields & NOT_YET.keys()
    assert not WITHOUT_MEANING & NOT_YET.keys()
