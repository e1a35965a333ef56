"""Which device an engine runs on where the config leaves the choice to us. Asks the driver; loads no torch."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import metadata
from pathlib import Path

# What a build of torch for NVIDIA's GPUs has in its folder, and one for CPUs only has not.
_CUDA_LIBRARY = "torch/lib/libtorch_cuda.so"
_DRIVER = "libcuda.so.1"


def chosen_device(asked: str) -> str:
    """What "auto" stands for on this machine: "cuda" with a GPU and a torch that can use it, else "cpu"."""
    if asked != "auto":
        return asked
    return "cuda" if _torch_has_cuda() and num_cuda_devices() else "cpu"


@cache
def num_cuda_devices() -> int:
    """GPUs that the driver shows to this process (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _torch_has_cuda() -> bool:
    try:
        return Path(str(metadata.distribution("torch").locate_file(_CUDA_LIBRARY))).exists()
    except metadata.PackageNotFoundError:
        return False
