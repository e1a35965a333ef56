"""The Triton language, where it is installed: the only module that imports it.

Where it is missing, modules with kernels can still be imported; launching one of their kernels raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn, TypeAlias, overload

import torch
from torch import Tensor

from octavo.kernels.cache_folder import LANGUAGE_FOLDER, VARIABLE, cache_folder

__all__ = ["HAS_TRITON", "capability", "jit", "next_power_of_2", "on_gpu", "tl", "triton"]

if VARIABLE in os.environ or "TRITON_CACHE_DIR" not in os.environ:
    # Read by the language when it first compiles.
    os.environ["TRITON_CACHE_DIR"] = str(cache_folder() / LANGUAGE_FOLDER)

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False
    triton = None

    class tl:  # type: ignore[no-redef]
        """What kernel modules need of the language when they are imported: constants."""

        @staticmethod
        def constexpr(value: Any) -> Any:
            """A module's constant that kernels read."""
            return value


shapes_capability = 90
"""What tensors that are only shapes, and those of the interpreter, count as; see `capability`."""

# What `kernel[grid](...)` launches; a kernel calls another one like a function. Parameters are annotated tl.tensor
# (pointers and numbers of the launch) or tl.constexpr: the language looks up no other names.
Kernel: TypeAlias = Any


class _NoKernel:
    """Stands for a kernel where the language is missing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.fn = function

    def __getitem__(self, grid: object) -> NoReturn:
        raise RuntimeError(f"the kernel {self.fn.__name__} needs the package triton: install octavo[triton-language]")


@overload
def jit(function: Callable[..., Any]) -> Kernel: ...


@overload
def jit(*, do_not_specialize: list[str]) -> Callable[[Callable[..., Any]], Kernel]: ...


def jit(function: Callable[..., Any] | None = None, *, do_not_specialize: list[str] | None = None) -> Any:
    """Makes a function of the Triton language a kernel.

    do_not_specialize: integer parameters whose value (1, multiples of 16) must not make another compiled kernel.
    """
    if not HAS_TRITON:
        return _NoKernel if function is None else _NoKernel(function)
    return triton.jit(function, do_not_specialize=do_not_specialize)


def on_gpu(tensor: Tensor) -> bool:
    """Whether operations on `tensor` are the GPU's: also for one that is only a shape, when kernels are compiled ahead.

    Every operation asks here, by `language.on_gpu`, so that one replacement sends all of them the GPU's way.
    """
    return tensor.device.type in ("cuda", "meta")


def capability(device: torch.device) -> int:
    """A GPU's compute capability times ten: 90 for Hopper; for other devices `shapes_capability`."""
    return _gpu_capability(device) if device.type == "cuda" else shapes_capability


@cache
def _gpu_capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below `number`: the extents of the language's tensors."""
    return 1 << (number - 1).bit_length()
