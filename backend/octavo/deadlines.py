"""Deadlines: which requests run out of time next. Knows only ids and times."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

_SLACK = 1024


class Deadlines:
    """A heap of (time in seconds, id). Ids of requests that have ended are dropped when they come up, or in bulk."""

    def __init__(self, is_live: Callable[[str], bool]) -> None:
        self._is_live = is_live
        self._heap: list[tuple[float, str]] = []
        self._compact_at = _SLACK

    @property
    def next(self) -> float:
        """The earliest time, which may be that of a request that has ended; infinity when there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def add(self, deadline: float, request_id: str) -> None:
        """Remembers a deadline."""
        heapq.heappush(self._heap, (deadline, request_id))
        if len(self._heap) >= self._compact_at:
            # Short requests with long deadlines would pile up.
            self._heap = [entry for entry in self._heap if self._is_live(entry[1])]
            heapq.heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + _SLACK

    def expired(self, now: float) -> list[str]:
        """Takes out the ids whose time is over."""
        expired = []
        while self._heap and self._heap[0][0] <= now:
            expired.append(heapq.heappop(self._heap)[1])
        return expired
