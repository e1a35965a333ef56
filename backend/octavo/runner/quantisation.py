"""What an EngineConfig asks to be quantised, checked against the checkpoint and the device."""

from __future__ import annotations

import torch

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import ModelLoadError
from octavo.models.config import Quantisation

# Ada and Hopper were the first with FP8 numbers.
_FP8_CAPABILITY = (8, 9)


def quantisation_of(config: EngineConfig, checkpoint: Checkpoint, device: torch.device) -> Quantisation:
    """Raises ModelLoadError, which names the setting, where the device cannot do it or the weights do not allow it."""
    weights = "fp8" if config.quantization == "fp8" else None
    if weights is not None:
        _check_fp8(f"quantization: {weights!r}", device)
        if checkpoint.gguf is not None:
            raise ModelLoadError(
                "quantization: 'fp8' is for unquantised weights; this GGUF file says itself how it is quantised"
            )
    fp8_kv_cache = config.kv_cache_dtype == "fp8"
    if fp8_kv_cache:
        _check_fp8("kv_cache_dtype: 'fp8'", device)
    return Quantisation(weights, fp8_kv_cache)


def _check_fp8(setting: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise ModelLoadError(f"{setting} needs a GPU; leave it out on {device.type}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (_FP8_CAPABILITY, capability))
        raise ModelLoadError(f"{setting} needs a GPU of compute capability {needed} or more; this one has {found}")
