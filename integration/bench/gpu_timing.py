"""Times launches on a GPU: in a captured graph, over several sets of data, from a cold L2 cache. Knows no kernel.

Without a GPU every call runs once, in the interpreter, and nothing is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from traceback import print_exc
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

# A line of a stage's table: names and figures. "error" and "passed": False are failures, "skipped" is none.
Row = dict[str, Any]
Call = Callable[[], object]
T = TypeVar("T")

# Read before every repetition: several times the L2 cache of any GPU, and nothing that must be written back while
# something is timed. It also takes the GPU longer than it takes the host to launch what comes behind it.
_FLUSH_BYTES = 512 << 20
_LEAST_REPETITIONS, _MOST_REPETITIONS = 7, 200
# Data that one graph touches: enough of it and the beginning and end of a graph are nothing beside its kernels.
_SET_BYTES, _MOST_SETS = 4 << 30, 16


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call: median, 10th and 90th percentile over the repetitions. NaN where nothing was timed."""

    us: float = math.nan
    low_us: float = math.nan
    high_us: float = math.nan
    repetitions: int = 0

    @property
    def columns(self) -> Row:
        return {"us": self.us, "low_us": self.low_us, "high_us": self.high_us, "repetitions": self.repetitions}


@dataclass(slots=True)
class Bench:
    """What a stage works with. mode: "full", "quick" or "dry" (CPU tensors, tiny sizes, no timings).

    copy_bytes_per_s (read and written), flops_per_s: what this GPU reached itself; NaN before it was measured.
    rows_of(stage): what another stage of the same run found.
    """

    device: torch.device
    mode: str
    copy_bytes_per_s: float = math.nan
    flops_per_s: float = math.nan
    rows_of: Callable[[str], Sequence[Row]] = lambda stage: ()
    _flushed: list[Tensor] = field(default_factory=list)

    @property
    def is_dry(self) -> bool:
        return self.mode == "dry"

    def pick(self, values: Sequence[T], dry: Sequence[T]) -> Sequence[T]:
        """All values, every other one of a quick run, or those that the interpreter can bear."""
        return dry if self.is_dry else values[::2] if self.mode == "quick" else values

    def num_sets(self, set_bytes: float, available: int = _MOST_SETS) -> int:
        """How many sets of data, each read by a call of its own, one graph goes through."""
        return 1 if self.is_dry else max(1, min(_MOST_SETS, available, int(_SET_BYTES // set_bytes)))

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Normal numbers."""
        return torch.empty(shape, dtype=dtype, device=self.device).normal_()

    def time(self, calls: Sequence[Call]) -> Timing:
        """One call's time, when these, which do the same to different data, follow each other in a graph."""
        if self.is_dry:
            for call in calls:
                call()
            return Timing()
        graph = captured(calls)
        estimate = self._replay_us(graph, 3)[-1]
        budget_us = 2e5 if self.mode == "full" else 6e4
        count = int(min(_MOST_REPETITIONS, max(_LEAST_REPETITIONS, budget_us / estimate)))
        times = [us / len(calls) for us in self._replay_us(graph, count)]
        tenths = quantiles(times, n=10, method="inclusive")
        return Timing(median(times), tenths[0], tenths[-1], count)

    def _replay_us(self, graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
        if not self._flushed:
            self._flushed.append(torch.zeros(_FLUSH_BYTES // 4, device=self.device))
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for begin, end in events:
            self._flushed[0].sum()
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) * 1e3 for begin, end in events]

    def guarded(self, label: Row, measure: Callable[[], Row]) -> Row:
        """A row; of a case that fails, one that says why. Raises if the GPU itself is lost by it."""
        try:
            return label | measure()
        except Exception as error:
            print_exc()
            if not self.is_dry:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            return label | {"error": f"{type(error).__name__}: {error}"[:500]}

    def peer(self, name: str, own: Timing, calls: Sequence[Call]) -> Row:
        """How many times as long PyTorch's own way takes. None where it cannot do it: that is no failure of ours."""
        try:
            return {f"{name}_ratio": self.time(calls).us / own.us}
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            if not self.is_dry:
                torch.cuda.synchronize()
            return {f"{name}_ratio": None, f"{name}_refused": str(error)[:200]}


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """Every call has run once, so that compiling and handles stay out of the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


@contextmanager
def launching_only(name: str) -> Iterator[None]:
    """Of the kernels launched inside, all but the one of this name are left out: what is timed is its share."""
    run = JITFunction.run

    def filtered(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, *args, **kwargs) if self.fn.__name__ == name else None

    with patch.object(JITFunction, "run", filtered):
        yield
