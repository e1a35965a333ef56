"""Device: where the runner's tensor work is done, in order, while the host goes on. The seam to the hardware.

Knows nothing of models, steps or tables. Work is a function without arguments that reads and writes tensors which its
owner keeps alive: what varies from step to step lies in their memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of the whole device, whoever uses them: free now, and installed; and those that tensors here hold."""

    free_bytes: int
    total_bytes: int
    allocated_bytes: int


class Arrival(Protocol):
    """A copy on its way to the host."""

    def wait(self) -> None:
        """Blocks until the copy has arrived; returns at once after that. Raises EngineError when the device is lost."""


class Device(Protocol):
    """Where steps run, in the order in which they are launched. Nothing waits for the device but `Arrival.wait`.

    (And what says so: `synchronize`, `capture`, `memory`, `peak_bytes`, which are not for the way of a step.)
    Called from one thread, except `Arrival.wait`. Work launched or captured must not make the host wait for the
    device. All of it runs in inference mode.
    """

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors are made."""

    def pinned(self, num_words: int) -> Tensor:
        """int64 [num_words] of zeros in host memory that copies need not wait for. Costly: once, at start."""

    def launch(self, work: Callable[[], None]) -> None:
        """Lets the device do `work` after everything launched before it; returns before it is done.

        Pinned memory that `work` copies from is read late: it stays as it is until a later `fetch` has arrived.
        Raises what `work` raises (torch.OutOfMemoryError among it), and EngineError when the device is lost.
        """

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records `work` as a graph; the function returned replays it, to be called inside launched work.

        `work` was launched before: nothing in it is compiled or allocated for the first time. A replay repeats the
        same operations on the same memory: values that `work` read on the host are baked in. Memory that one graph
        allocated is used again by the others: results are kept in tensors that existed before. Raises
        torch.OutOfMemoryError, or what `work` raises; the device can be used on.
        """

    def fetch(self, source: Tensor, target: Tensor) -> Arrival:
        """Copies `source` to `target` (pinned, same shape and dtype) beside later work, after what was launched.

        `source` is memory that is kept and not written by launched work before the copy has arrived.
        """

    def synchronize(self) -> None:
        """Blocks until everything launched is done. Raises EngineError when the device is lost."""

    @property
    def memory(self) -> DeviceMemory:
        """As it is now; memory that is only kept for later use here counts as free."""

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """Launches `work`, waits for it, and returns the most bytes that it held beyond those held before it."""
