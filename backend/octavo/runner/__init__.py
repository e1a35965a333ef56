"""Runner: the device side of the engine. `create_executor` is all that the engine knows of it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.core.step import Executor
from octavo.errors import ModelLoadError, shorten
from octavo.models import load_model, read_model_spec
from octavo.runner.input_batch import InputBatch
from octavo.runner.kv_cache import KVCacheLayout
from octavo.runner.model_runner import ModelRunner

__all__ = ["create_executor"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def create_executor(
    config: EngineConfig, checkpoint: Checkpoint, on_progress: Callable[[str, float], None]
) -> Executor:
    """Loads the model and makes it ready to run steps. `config` is resolved.

    on_progress(phase, fraction) is called now and then. Raises ModelLoadError when the model, the dtype, the device or
    the memory does not allow it.
    """
    device = _device(config)
    dtype = _dtype(config, checkpoint)
    torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    spec = read_model_spec(checkpoint)
    layout = KVCacheLayout(spec.num_layers, spec.num_kv_heads, spec.head_dim, config.block_size, dtype)
    num_blocks = layout.num_blocks(config)  # before the weights: what cannot work fails at once
    model = load_model(checkpoint, dtype, device, on_progress)
    on_progress("warm up", 0.0)
    assert config.max_num_seqs is not None and config.max_model_len is not None
    batch = InputBatch(config.max_num_seqs, config.max_model_len, config.block_size, spec.vocab_size)
    runner = ModelRunner(model, layout.allocate(num_blocks, device), batch)
    runner.warm_up()
    on_progress("warm up", 1.0)
    return runner


def _device(config: EngineConfig) -> torch.device:
    if config.device.startswith("cuda"):
        raise ModelLoadError(f"device: {config.device!r} is not supported yet; use 'cpu' or 'auto'")
    return torch.device("cpu")


def _dtype(config: EngineConfig, checkpoint: Checkpoint) -> torch.dtype:
    """The one asked for; else the checkpoint's own where the CPU computes with it, and float32 where it does not.

    A checkpoint that names none (GGUF) counts as bfloat16. float32 holds every float16 and bfloat16 number exactly.
    """
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "bfloat16"
    if named not in _DTYPES:
        raise ModelLoadError(f"config.json: dtype {shorten(named)} is not supported; known are {', '.join(_DTYPES)}")
    return torch.bfloat16 if named == "bfloat16" and has_native_bfloat16() else torch.float32


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
