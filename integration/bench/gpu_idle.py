"""How long the device had nothing to do between one step's work and the next: by events around it, and by a profiler.

Knows where work is launched, not what it is. Without a GPU there is nothing to find: NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from math import nan
from statistics import median
from typing import Any, Protocol
from unittest.mock import patch

import bare_octavo  # noqa: F401  before everything that imports octavo
import torch
from gpu_timing import Bench, Row
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from octavo.runner.cuda_device import CudaDevice

Work = Callable[[], None]
Interval = tuple[float, float]


class Event(Protocol):
    """A place in the device's work, as torch.cuda.Event is one."""

    def record(self) -> None: ...
    def elapsed_time(self, end_event: Any) -> float: ...


@dataclass(slots=True)
class StepClock:
    """Owns an event before and one behind each piece of work that was launched while it watched."""

    new_event: Callable[[], Event]
    marks: list[tuple[Event, Event]] = field(default_factory=list)

    @contextmanager
    def watching(self, device_class: type) -> Iterator[None]:
        """`device_class` has launch(work), which calls it where the device's own stream is the current one."""
        launch = device_class.launch  # type: ignore[attr-defined]

        def watched(device: object, work: Work) -> None:
            launch(device, lambda: self._marked(work))

        with patch.object(device_class, "launch", watched):
            yield

    def _marked(self, work: Work) -> None:
        begin, end = self.new_event(), self.new_event()
        begin.record()
        work()
        end.record()
        self.marks.append((begin, end))


def idle_between(marks: Sequence[tuple[Event, Event]]) -> Row:
    """Once all work is done. What the device waits for inside a piece of work counts as busy."""
    if len(marks) < 2:
        return {"idle": nan, "longest_gap_us": nan, "work_ms": nan}
    gaps = [end.elapsed_time(begin) for (_, end), (begin, _) in pairwise(marks)]
    span = marks[0][0].elapsed_time(marks[-1][1])
    work_ms = median(begin.elapsed_time(end) for begin, end in marks)
    return {"idle": sum(gaps) / span, "longest_gap_us": max(gaps) * 1e3, "work_ms": work_ms}


def by_events(bench: Bench, work: Work) -> Row:
    """`work` makes the engine step."""
    if bench.is_dry:
        work()
        return idle_between([])
    clock = StepClock(lambda: torch.cuda.Event(enable_timing=True))
    with clock.watching(CudaDevice):
        work()
    torch.cuda.synchronize()
    return idle_between(clock.marks)


def by_profiler(bench: Bench, work: Work) -> Row:
    """From the kernels' own times, those inside a captured graph too. The profiler slows the host, and so adds gaps.

    None where the machine does not let it look.
    """
    activity, kind = (
        (ProfilerActivity.CPU, DeviceType.CPU) if bench.is_dry else (ProfilerActivity.CUDA, DeviceType.CUDA)
    )
    try:
        with profile(activities=[activity]) as profiled:
            work()
    except (RuntimeError, AssertionError) as error:
        return {"profiled_idle": None, "profiled_idle_refused": str(error)[:200]}
    times = [(e.time_range.start, e.time_range.end) for e in profiled.events() if e.device_type == kind]
    busy, span = covered(times)
    return {"profiled_idle": nan if bench.is_dry or not span else 1 - busy / span}


def covered(intervals: Sequence[Interval]) -> tuple[float, float]:
    """How much of their span they cover together, and the span."""
    busy, last = 0.0, -float("inf")
    for begin, end in sorted(intervals):
        busy += max(0.0, end - max(begin, last))
        last = max(last, end)
    return busy, last - min(begin for begin, _ in intervals) if intervals else 0.0
