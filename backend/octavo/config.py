"""EngineConfig: every setting of the engine under vLLM's names, read once, checked once, never written again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from octavo.checkpoint import Checkpoint
from octavo.errors import InvalidRequest, ModelLoadError
from octavo.parsing import parse_bool, parse_float, parse_int, parse_mapping, parse_text

logger = logging.getLogger(__name__)

DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All settings of one engine. None means "choose for me": `resolve` does.

    Sizes are in tokens (`max_...tokens`, `max_model_len`, `block_size`), bytes (`..._bytes`) or seconds (`..._s`).
    `max_waiting` bounds the queue: one more request is refused as Overloaded. `executor` names the factory,
    "module:function", of what runs the steps. `engine_python` is the interpreter that runs the engine process
    (default: OCTAVO_ENGINE_PYTHON, then this one). A step that takes longer than `step_timeout_s` counts as hung, and
    the engine process is started anew, at most `max_restarts` times in `restart_window_s`.
    """

    model: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    long_prefill_token_threshold: int | None = None
    enable_prefix_caching: bool = True
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    gpu_memory_utilization: float = 0.9
    num_threads: int | None = None
    served_model_name: str | None = None
    disable_log_stats: bool = False
    max_waiting: int = 1024
    executor: str = "octavo.runner:create_executor"
    engine_python: str | None = None
    step_timeout_s: float = 60.0
    start_timeout_s: float = 1800.0
    max_restarts: int = 3
    restart_window_s: float = 300.0

    def __post_init__(self) -> None:
        for name, parse in _PARSERS.items():
            value = getattr(self, name)
            if value is None and not _OPTIONAL[name]:
                raise InvalidRequest(name, None, "a value")
            if value is not None:
                # The one place where a frozen field is set: while the object is being made.
                object.__setattr__(self, name, parse(name, value))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], folder: Path | None = None) -> EngineConfig:
        """Reads engine arguments written for us or for vLLM.

        A relative `model` or `tokenizer` is relative to `folder`. An argument of vLLM's that means nothing here is
        accepted with one warning. Raises ModelLoadError that names an unknown key or a bad value.
        """
        known: dict[str, Any] = {}
        for name, value in mapping.items():
            if name in _PARSERS:
                known[name] = value
            elif name in _WITHOUT_MEANING or _asks_for_nothing(name, value):
                logger.warning("engine argument %s has no meaning here and is ignored", name)
            elif name in _NOT_YET:
                raise ModelLoadError(f"engine argument {name}: {value!r} is not supported yet; leave it out")
            else:
                raise ModelLoadError(f"unknown engine argument {name!r}; known are {', '.join(_PARSERS)}")
        for name in ("model", "tokenizer"):
            path = known.get(name)
            if isinstance(path, str) and folder is not None and not os.path.isabs(path):
                known[name] = str((folder / path).resolve())
        try:
            return cls(**known)
        except InvalidRequest as error:
            raise ModelLoadError(f"engine argument {error}") from None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> EngineConfig:
        """Reads a model.json. Raises ModelLoadError when it is missing, not JSON, or has a bad key."""
        file = Path(path)
        try:
            mapping = parse_mapping(file.name, json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ModelLoadError(f"'{file.name}' must be provided in '{file.parent}'") from None
        except (ValueError, InvalidRequest) as error:
            raise ModelLoadError(f"'{file}' is not a JSON object: {error}") from None
        return cls.from_mapping(mapping, folder=file.parent)


def _asks_for_nothing(name: str, value: object) -> bool:
    """Whether a feature that is not there yet was only switched off, as complete model.json files do."""
    return name in _NOT_YET and (value in (None, False, 0, 1, "", "auto") or value == {} or value == [])


def _choice(allowed: tuple[str, ...]) -> Callable[[str, object], str]:
    def parse(name: str, value: object) -> str:
        aliases = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        text = aliases.get(str(value), str(value))
        if text not in allowed:
            raise InvalidRequest(name, value, "one of " + ", ".join(allowed))
        return text

    return parse


def _block_size(name: str, value: object) -> int:
    size = parse_int(name, value, 1, 1024)
    if size & (size - 1):
        raise InvalidRequest(name, value, "a power of two from 1 to 1024")
    return size


def _count(low: int = 1) -> Callable[[str, object], int]:
    return lambda name, value: parse_int(name, value, low)


def _fraction(name: str, value: object) -> float:
    return parse_float(name, value, 0.01, 1.0)


def _seconds(name: str, value: object) -> float:
    return parse_float(name, value, 0.001)


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "model": parse_text,
    "tokenizer": parse_text,
    "dtype": _choice(DTYPES),
    "device": _choice(DEVICES),
    "seed": parse_int,
    "max_model_len": _count(),
    "block_size": _block_size,
    "max_num_seqs": _count(),
    "max_num_batched_tokens": _count(),
    "long_prefill_token_threshold": _count(),
    "enable_prefix_caching": parse_bool,
    "kv_cache_memory_bytes": _count(),
    "num_gpu_blocks_override": _count(2),
    "gpu_memory_utilization": _fraction,
    "num_threads": _count(),
    "served_model_name": parse_text,
    "disable_log_stats": parse_bool,
    "max_waiting": _count(0),
    "executor": parse_text,
    "engine_python": parse_text,
    "step_timeout_s": _seconds,
    "start_timeout_s": _seconds,
    "max_restarts": _count(0),
    "restart_window_s": _seconds,
}
_OPTIONAL = {field.name: field.default is None for field in fields(EngineConfig)}

# Arguments of vLLM's that change nothing for a caller here: there is nothing to switch.
_WITHOUT_MEANING = frozenset(
    {
        "trust_remote_code", "swap_space", "enforce_eager", "disable_log_requests", "enable_log_requests",
        "load_format",
        "tokenizer_mode", "skip_tokenizer_init", "max_seq_len_to_capture", "enable_chunked_prefill", "worker_use_ray",
        "distributed_executor_backend", "max_parallel_loading_workers", "cpu_offload_gb", "use_v2_block_manager",
        "disable_custom_all_reduce", "max_logprobs", "revision", "download_dir", "scheduling_policy",
        "async_scheduling",
        "generation_config", "compilation_config", "preemption_mode", "engine_use_ray", "num_lookahead_slots",
        "disable_sliding_window", "disable_async_output_proc", "max_num_partial_prefills", "max_long_partial_prefills",
    }
)  # fmt: skip
# Features that change what is computed: accepting them silently would serve something else than was asked for.
_NOT_YET = frozenset(
    {
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "quantization", "kv_cache_dtype",
        "enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras", "lora_modules", "speculative_config",
        "hf_overrides",
        "rope_scaling", "rope_theta", "runner", "task", "override_generation_config", "limit_mm_per_prompt",
    }
)  # fmt: skip


def resolve(config: EngineConfig, checkpoint: Checkpoint) -> EngineConfig:
    """A copy of `config` without open questions that the model or the machine's kind can answer.

    Raises ModelLoadError when a setting asks for more than the model has.
    """
    on_gpu = config.device == "cuda"
    context = checkpoint.max_position_embeddings
    max_model_len = config.max_model_len or context
    if max_model_len > context:
        raise ModelLoadError(f"max_model_len: {max_model_len} is longer than the model's context of {context} tokens")
    num_batched = config.max_num_batched_tokens or (8192 if on_gpu else 512)
    return replace(
        config,
        model=str(checkpoint.path),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs or (256 if on_gpu else 64),
        max_num_batched_tokens=num_batched,
        long_prefill_token_threshold=config.long_prefill_token_threshold or max(num_batched // 2, 1),
    )
