"""EngineConfig: every setting of the engine under vLLM's names, read once, checked once, never written again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from octavo.checkpoint import Checkpoint
from octavo.devices import chosen_device
from octavo.errors import InvalidRequest, ModelLoadError, shorten
from octavo.hub_cache import Origin, locate
from octavo.parsing import parse_bool, parse_float, parse_int, parse_mapping, parse_text
from octavo.pooling import is_made_for_vectors
from octavo.sentence_files import read_text_settings
from octavo.vllm_arguments import NOT_YET, WITHOUT_MEANING, asks_for_nothing

logger = logging.getLogger(__name__)

DTYPES = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")
QUANTIZATIONS = ("fp8", "int8", "int4", "gguf")
KV_CACHE_DTYPES = ("auto", "fp8")
TOOL_CALL_PARSERS = ("auto", "none", "hermes", "llama3_json", "mistral")
RUNNERS = ("auto", "generate", "pooling")
# `itl_budget_s` of a batch, which is done when its last token is: no prompt is held back for the sake of a stream.
NOBODY_WAITS_S = 3600.0
REASONING_PARSERS = ("auto", "none", "deepseek_r1", "mistral", "qwen3")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All settings of one engine. None means "choose for me": `resolve` does.

    Sizes are in tokens (`max_...tokens`, `max_model_len`, `block_size`), bytes (`..._bytes`) or seconds (`..._s`). A
    step that has running streams in it takes no more prompt tokens than let it end within `itl_budget_s` (None: twice
    what it takes without prompts on a GPU, 6.5 times on a CPU). With `async_scheduling` a step is scheduled while the
    one before it is computed (None: on a GPU). `max_waiting` bounds the queue: one more request is refused as
    Overloaded. Calls of tools and reasoning are told from the rest of a message as the model's chat template writes
    them ("auto"), as a parser of vLLM's name does, or not at all ("none"). `executor` names the factory,
    "module:function", of what runs the steps. `engine_python` is the interpreter that runs the engine process (default:
    OCTAVO_ENGINE_PYTHON, then this one). A step that takes longer than `step_timeout_s` counts as hung, and the engine
    process is started anew, at most `max_restarts` times in `restart_window_s`. `runner`: whether the model completes
    prompts ("generate") or makes a vector of each ("pooling"); "auto" is what the checkpoint was made for.
    """

    model: str | None = None
    runner: str = "auto"
    tokenizer: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    device: str = "auto"
    seed: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    long_prefill_token_threshold: int | None = None
    itl_budget_s: float | None = None
    async_scheduling: bool | None = None
    enable_prefix_caching: bool = True
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    gpu_memory_utilization: float = 0.9
    num_threads: int | None = None
    served_model_name: str | None = None
    disable_log_stats: bool = False
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
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
        """Reads engine arguments written for us or for vLLM; null stands for the default.

        `model` and `tokenizer` may be relative to `folder`, or Hugging Face ids (with `revision` and
        `tokenizer_revision`) in the local cache or `download_dir`. What of vLLM's means nothing here is accepted with
        one warning for all of it. Raises ModelLoadError that names an unknown key or a bad value.
        """
        known: dict[str, Any] = {name: value for name, value in mapping.items() if name in _PARSERS}
        if str(mapping.get("task")).strip().lower() in _VECTOR_TASKS:
            known.setdefault("runner", "pooling")
        _check_others(mapping)
        try:
            where = {name: parse_text(name, mapping[name]) for name in _WHERE if mapping.get(name) is not None}
            for name, revision in (("model", "revision"), ("tokenizer", "tokenizer_revision")):
                if known.get(name) is not None:
                    origin = Origin(folder, where.get("download_dir"), where.get(revision))
                    known[name] = locate(parse_text(name, known[name]), origin)
            return cls(**{name: value for name, value in known.items() if value is not None})
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


def _check_others(mapping: Mapping[str, object]) -> None:
    """Accepts vLLM's arguments that EngineConfig has no field for, or raises ModelLoadError that names one."""
    ignored = []
    for name, value in mapping.items():
        if name in WITHOUT_MEANING:
            ignored.append(name)
        elif name in NOT_YET:
            if not asks_for_nothing(value, NOT_YET[name]):
                raise ModelLoadError(f"engine argument {name}: {shorten(value)} is not supported yet; leave it out")
        elif name not in _PARSERS and name not in _WHERE:
            near = get_close_matches(name, [*_PARSERS, *_WHERE, *NOT_YET, *WITHOUT_MEANING], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_PARSERS)}"
            raise ModelLoadError(f"unknown engine argument {name!r}; {hint}")
    if ignored:
        logger.warning("engine arguments that have no meaning here are ignored: %s", ", ".join(ignored))


def _choice(allowed: tuple[str, ...]) -> Callable[[str, object], str]:
    def parse(name: str, value: object) -> str:
        aliases = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        text = str(value).removeprefix("torch.")
        text = aliases.get(text, text)
        if text not in allowed:
            raise InvalidRequest(name, value, "one of " + ", ".join(allowed))
        return text

    return parse


def _quantization(name: str, value: object) -> str | None:
    """How weights are quantised while they are loaded; "gguf": as the file has them, where that can stay."""
    if asks_for_nothing(value):
        return None
    scheme = str(value).strip().lower()
    if scheme not in QUANTIZATIONS:
        raise InvalidRequest(name, value, "one of " + ", ".join(QUANTIZATIONS))
    return scheme


def _kv_cache_dtype(name: str, value: object) -> str:
    """vLLM has two names for FP8 e4m3."""
    asked = "auto" if asks_for_nothing(value) else str(value).strip().lower()
    kind = "fp8" if asked == "fp8_e4m3" else asked
    if kind not in KV_CACHE_DTYPES:
        raise InvalidRequest(name, value, "one of " + ", ".join((*KV_CACHE_DTYPES, "fp8_e4m3")))
    return kind


def _device(name: str, value: object) -> str:
    """One of DEVICES, or one device of several: "cuda:1"."""
    kind, colon, index = str(value).partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and index.isdecimal() and index.isascii())):
        raise InvalidRequest(name, value, f"one of {', '.join(DEVICES)}, cuda:N")
    return f"cuda:{int(index)}" if colon else kind


def _block_size(name: str, value: object) -> int:
    size = parse_int(name, value, 1, 1024)
    if size & (size - 1):
        raise InvalidRequest(name, value, "a power of two from 1 to 1024")
    return size


def _count(low: int = 1) -> Callable[[str, object], int]:
    return lambda name, value: parse_int(name, value, low)


def _first_text(name: str, value: object) -> str:
    """vLLM takes several names for one model, and answers by the first."""
    return parse_text(name, value[0] if isinstance(value, list) and value else value)


def _fraction(name: str, value: object) -> float:
    return parse_float(name, value, 0.01, 1.0)


def _seconds(name: str, value: object) -> float:
    return parse_float(name, value, 0.001)


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "model": parse_text,
    "runner": _choice(RUNNERS),
    "tokenizer": parse_text,
    "dtype": _choice(DTYPES),
    "quantization": _quantization,
    "kv_cache_dtype": _kv_cache_dtype,
    "device": _device,
    "seed": parse_int,
    "max_model_len": _count(),
    "block_size": _block_size,
    "max_num_seqs": _count(),
    "max_num_batched_tokens": _count(),
    "long_prefill_token_threshold": _count(0),
    "itl_budget_s": _seconds,
    "async_scheduling": parse_bool,
    "enable_prefix_caching": parse_bool,
    "kv_cache_memory_bytes": _count(),
    "num_gpu_blocks_override": _count(2),
    "gpu_memory_utilization": _fraction,
    "num_threads": _count(),
    "served_model_name": _first_text,
    "disable_log_stats": parse_bool,
    "tool_call_parser": _choice(TOOL_CALL_PARSERS),
    "reasoning_parser": _choice(REASONING_PARSERS),
    "max_waiting": _count(0),
    "executor": parse_text,
    "engine_python": parse_text,
    "step_timeout_s": _seconds,
    "start_timeout_s": _seconds,
    "max_restarts": _count(0),
    "restart_window_s": _seconds,
}
# vLLM's older name for the runner.
_VECTOR_TASKS = ("embed", "embedding")
# They tell where `model` and `tokenizer` lie.
_WHERE = ("revision", "tokenizer_revision", "download_dir")
_OPTIONAL = {field.name: field.default is None for field in fields(EngineConfig)}


def resolve(config: EngineConfig, checkpoint: Checkpoint) -> EngineConfig:
    """A copy of `config` without open questions that the model or the machine's kind can answer.

    Raises ModelLoadError when a setting asks for more than the model has.
    """
    device = chosen_device(config.device)
    on_gpu = device.startswith("cuda")
    runner = _runner(config, checkpoint)
    context = checkpoint.max_position_embeddings
    longest = read_text_settings(checkpoint).max_seq_length if runner == "pooling" else None
    max_model_len = config.max_model_len or min(context, longest or context)
    if max_model_len > context:
        raise ModelLoadError(f"max_model_len: {max_model_len} is longer than the model's context of {context} tokens")
    num_batched = config.max_num_batched_tokens or (8192 if on_gpu else 512)
    max_num_seqs = config.max_num_seqs or (256 if on_gpu else 64)
    if checkpoint.is_encoder:
        # Its prompts are computed whole: what a token's keys are depends on all that come after it, too.
        num_batched = max(num_batched, max_model_len)
        config = replace(config, enable_prefix_caching=False)
    if checkpoint.is_encoder and config.num_gpu_blocks_override is None and config.kv_cache_memory_bytes is None:
        # Nothing is kept from step to step: two steps' worth, the last block of each prompt partly filled.
        num_blocks = 2 * (-(-num_batched // config.block_size) + max_num_seqs) + 1
        config = replace(config, num_gpu_blocks_override=num_blocks)
    return replace(
        config,
        model=str(checkpoint.path),
        runner=runner,
        device=device,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=num_batched,
        long_prefill_token_threshold=config.long_prefill_token_threshold or max(num_batched // 2, 1),
    )


def _runner(config: EngineConfig, checkpoint: Checkpoint) -> str:
    if config.runner == "generate" and not checkpoint.has_head:
        raise ModelLoadError("runner: 'generate' is not for a model without a last layer; expected 'pooling'")
    if config.runner == "auto":
        return "pooling" if is_made_for_vectors(checkpoint) else "generate"
    return config.runner
