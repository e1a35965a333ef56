"""The Triton language, where it is installed: the only module that imports it.

Where it is missing, modules with kernels can still be imported; launching one of their kernels raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias, overload

__all__ = ["HAS_TRITON", "jit", "next_power_of_2", "tl"]

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False

    class tl:  # type: ignore[no-redef]
        """What kernel modules need of the language when they are imported: constants."""

        @staticmethod
        def constexpr(value: Any) -> Any:
            """A module's constant that kernels read."""
            return value


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


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below `number`: the extents of the language's tensors."""
    return 1 << (number - 1).bit_length()
