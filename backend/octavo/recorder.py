"""Recorder: the histograms while they grow. Knows which buckets the metrics need, and nothing of requests."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import fields

from octavo.metrics import recorded_bounds
from octavo.stats import Histogram, Histograms, Observations


class GrowingHistogram:
    """One histogram that grows. Keeps each bucket's own sum, so that exporters can tell what is new in each."""

    __slots__ = ("_bounds", "_counts", "_sums")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sums = [0.0] * (len(bounds) + 1)

    def observe(self, values: list[float]) -> None:
        """Adds each of the values."""
        bounds, counts, sums = self._bounds, self._counts, self._sums
        for value in values:
            place = bisect_left(bounds, value)
            counts[place] += 1
            sums[place] += value

    def snapshot(self) -> Histogram:
        """As of now."""
        return Histogram(self._bounds, tuple(self._counts), tuple(self._sums))


class Recorder:
    """Owned by whoever hands tokens on. Not thread-safe."""

    def __init__(self, max_model_len: int) -> None:
        names = [field.name for field in fields(Histograms)]
        self._growing = {name: GrowingHistogram(recorded_bounds(name, max_model_len)) for name in names}

    def observe(self, seen: Observations) -> None:
        """Takes what was observed in one step."""
        for name, growing in self._growing.items():
            values = getattr(seen, name)
            if values:
                growing.observe(values)

    def snapshot(self) -> Histograms:
        """As of now."""
        return Histograms(**{name: growing.snapshot() for name, growing in self._growing.items()})
