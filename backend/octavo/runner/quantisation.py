"""What an EngineConfig asks to be quantised, checked against the checkpoint and the device."""

from __future__ import annotations

import torch

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import ModelLoadError
from octavo.models.config import Quantisation

# Ada and Hopper were the first with FP8 numbers.
_FP8_CAPABILITY = (8, 9)
# Types of GGUF tensors that have not lost anything to codes.
_PLAIN_GGUF_TYPES = {"F64", "F32", "F16", "BF16"}
# A scheme that only CPUs have kernels for -> that of the last layer, whose errors are those of the logits.
_HEADS = {"int8": "int8", "int4": "int8"}


def quantisation_of(config: EngineConfig, checkpoint: Checkpoint, device: torch.device) -> Quantisation:
    """Raises ModelLoadError, which names the setting, where the device cannot do it or the weights do not allow it."""
    weights = None if config.quantization == "gguf" else config.quantization
    if weights == "fp8":
        _check_fp8("quantization: 'fp8'", device)
        if checkpoint.gguf is not None:
            raise ModelLoadError(
                "quantization: 'fp8' is for unquantised weights; this GGUF file says itself how it is quantised"
            )
    elif weights is not None:
        _check_codes(weights, checkpoint, device)
    fp8_kv_cache = config.kv_cache_dtype == "fp8"
    if fp8_kv_cache:
        _check_fp8("kv_cache_dtype: 'fp8'", device)
    # On a GPU a file's codes become numbers of the model's type.
    gguf_codes = config.quantization == "gguf" and checkpoint.gguf is not None and device.type == "cpu"
    return Quantisation(weights, fp8_kv_cache, _HEADS.get(weights or ""), gguf_codes)


def _check_codes(scheme: str, checkpoint: Checkpoint, device: torch.device) -> None:
    if device.type != "cpu":
        raise ModelLoadError(f"quantization: {scheme!r} has no kernels for GPUs yet; use 'fp8' there")
    tensors = () if checkpoint.gguf is None else checkpoint.gguf.reader.tensors
    kinds = {tensor.tensor_type.name for tensor in tensors} - _PLAIN_GGUF_TYPES
    if kinds:
        raise ModelLoadError(
            f"quantization: {scheme!r} is for unquantised weights; this GGUF file has {', '.join(sorted(kinds))}: "
            "use 'gguf', which keeps its 8 and 4 bit tensors as they are, or leave it out"
        )


def _check_fp8(setting: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise ModelLoadError(f"{setting} needs a GPU; leave it out on {device.type}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (_FP8_CAPABILITY, capability))
        raise ModelLoadError(f"{setting} needs a GPU of compute capability {needed} or more; this one has {found}")
