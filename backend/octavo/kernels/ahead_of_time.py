"""Compiles kernels for a GPU that need not be there: launches inside `compiling` compile and run nothing.

What comes out lies in the language's folder on disk, where an engine on such a GPU finds it. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from octavo.kernels import language

_WARP_SIZE = 32


class _NoDevice:
    """Stands for the language's driver: enough to compile. The device's number is its architecture's."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        """The language keeps a kernel's compiled versions by device: each architecture is another one."""
        return self._capability

    def get_current_stream(self, device: int) -> int:
        """No stream: the default one."""
        return 0

    def get_current_target(self) -> Any:
        """What to compile for."""
        return language.triton.backends.compiler.GPUTarget("cuda", self._capability, _WARP_SIZE)


@contextmanager
def compiling(capability: int, on_kernel: Callable[[str], None]) -> Iterator[None]:
    """Kernels launched inside, on meta tensors, are compiled for compute capability `capability` (90 for 9.0).

    on_kernel(name) is told of each variant of a kernel, once. Needs the package triton. For one thread.
    """
    runtime = language.triton.runtime
    driver, run = runtime.driver, runtime.JITFunction.run
    told: set[str] = set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel.hash not in told:
            told.add(kernel.hash)
            on_kernel(kernel.metadata.name)
        return kernel

    before = driver._active, language.shapes_capability
    driver.set_active(_NoDevice(capability))
    language.shapes_capability = capability
    runtime.JITFunction.run = compile_only
    try:
        yield
    finally:
        runtime.JITFunction.run = run
        driver._active, language.shapes_capability = before
