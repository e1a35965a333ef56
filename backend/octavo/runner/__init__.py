"""Runner: the device side of the engine. `create_executor` is all that the engine knows of it."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.core.step import Executor
from octavo.errors import ModelLoadError, shorten
from octavo.kernels import language
from octavo.kernels.heap import keep_freed_memory
from octavo.models import Model, ModelSpec, load_model, read_model_spec
from octavo.models.decoder import Decoder
from octavo.models.encoder import Encoder
from octavo.runner.cuda_device import CudaDevice
from octavo.runner.device_start import start_on_device
from octavo.runner.encoder_runner import EncoderRunner
from octavo.runner.input_batch import InputBatch
from octavo.runner.kv_cache import KVCacheLayout
from octavo.runner.model_runner import ModelRunner
from octavo.runner.quantisation import quantisation_of

__all__ = ["create_executor", "create_executor_for", "dtype_of", "has_native_bfloat16", "layout_of"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def create_executor(
    config: EngineConfig, checkpoint: Checkpoint, on_progress: Callable[[str, float], None]
) -> Executor:
    """Loads the model and makes it ready to run steps. `config` is resolved.

    on_progress(phase, fraction) is called now and then. Raises ModelLoadError when the model, the dtype, the device or
    the memory does not allow it.
    """
    device = _device(config)
    dtype = dtype_of(config, checkpoint, device)
    quantisation = quantisation_of(config, checkpoint, device)
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
        # Before the weights: what cannot work fails at once.
        layout_of(read_model_spec(checkpoint), config, dtype).num_blocks(config)
    model = load_model(checkpoint, dtype, device, on_progress, quantisation)
    return create_executor_for(model, config, device, dtype, on_progress)


def create_executor_for(
    model: Model,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: Callable[[str, float], None] = lambda phase, fraction: None,
) -> Executor:
    """Makes a model ready that is on the device already. `config` is resolved; dtype: of queries, keys and values."""
    layout = layout_of(model.spec, config, dtype)
    if device.type == "cuda" and isinstance(model, Decoder):
        return start_on_device(model, layout, config, CudaDevice(device), on_progress)
    on_progress("warm up", 0.0)
    keep_freed_memory()
    assert config.max_num_seqs is not None and config.max_model_len is not None
    batch = InputBatch(config.max_num_seqs, config.max_model_len, config.block_size, model.spec.vocab_size)
    kv_caches = layout.allocate(layout.num_blocks(config), device)
    runner: ModelRunner | EncoderRunner
    if isinstance(model, Decoder):
        runner = ModelRunner(model, kv_caches, batch)
    else:
        assert isinstance(model, Encoder)
        runner = EncoderRunner(model, kv_caches, batch)
    runner.warm_up()
    on_progress("warm up", 1.0)
    return runner


def layout_of(spec: ModelSpec, config: EngineConfig, dtype: torch.dtype) -> KVCacheLayout:
    """The KV cache of a model that computes in `dtype`."""
    kept = torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else dtype
    return KVCacheLayout(spec.num_layers, spec.num_kv_heads, spec.head_dim, config.block_size, kept)


def _device(config: EngineConfig) -> torch.device:
    """Where to run; raises ModelLoadError where there is no such GPU, or torch cannot use it."""
    if not config.device.startswith("cuda"):
        return torch.device("cpu")
    device = torch.device(config.device)
    num_devices = torch.cuda.device_count()
    if not torch.cuda.is_available() or (device.index or 0) >= num_devices:
        built = "" if torch.version.cuda else "; this torch is built for CPUs only"
        raise ModelLoadError(f"device: {config.device!r} is not there: torch sees {num_devices} GPUs{built}")
    if not language.HAS_TRITON:
        raise ModelLoadError(f"device: {config.device!r} needs the package triton: install octavo[triton-language]")
    device = torch.device("cuda", device.index or 0)
    # Kernels are launched on the current one, whatever their tensors' is.
    torch.cuda.set_device(device)
    return device


def dtype_of(config: EngineConfig, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The one asked for; else the checkpoint's own where the device computes with it, and float32 where it does not.

    A checkpoint that names none counts as bfloat16 (GGUF), or as float32 if it is an encoder's, which is small. float32
    holds every float16 and bfloat16 number exactly.
    """
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    unnamed = "float32" if checkpoint.is_encoder else "bfloat16"
    named = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or unnamed
    if named not in _DTYPES:
        raise ModelLoadError(f"config.json: dtype {shorten(named)} is not supported; known are {', '.join(_DTYPES)}")
    if device.type == "cuda" and checkpoint.is_encoder:
        return _DTYPES[named]
    if device.type == "cuda":
        return torch.float16 if named == "float16" else torch.bfloat16
    return torch.bfloat16 if named == "bfloat16" and has_native_bfloat16() else torch.float32


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
