"""FrontStats: the engine's numbers as a host sees them, across restarts of the engine process, and queue estimates.

Ends are counted and times observed here, where all of them are known for certain, whatever happened to the process.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import fields, replace

from octavo.outputs import FinishReason
from octavo.recorder import Recorder
from octavo.stats import EngineStats, Observations

_TOTALS = tuple(f.name for f in fields(EngineStats) if f.name.endswith("_total") and f.name != "finished_total")
_REMEMBERED_ENDS = 64
_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0


class FrontStats:
    """Owned by the front; every use is under its lock. Counts sequences: a request with n > 1 is n of them."""

    def __init__(self, max_model_len: int) -> None:
        self.num_restarts = 0
        self.num_live = 0
        self._latest = EngineStats()
        self._ended_processes: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._ends: deque[float] = deque(maxlen=_REMEMBERED_ENDS)
        self._recorder = Recorder(max_model_len)

    def update(self, latest: EngineStats) -> None:
        """Takes a reading of the engine process."""
        self._latest = latest

    def process_ended(self) -> None:
        """It runs nothing and holds no block any more; its counters are kept, as the next one's start at zero."""
        self._ended_processes.update({name: getattr(self._latest, name) for name in _TOTALS})
        self._latest = EngineStats()

    def count_ends(self, reasons: Iterable[FinishReason], now: float) -> None:
        """Live sequences have ended at time `now` (seconds)."""
        for reason in reasons:
            self.num_live -= 1
            self._finished[reason.value] += 1
            self._ends.append(now)

    def observe(self, seen: Observations) -> None:
        """Takes what was observed of live requests."""
        self._recorder.observe(seen)

    def num_waiting(self, max_num_seqs: int, num_more: int = 0) -> int:
        """Live sequences, and `num_more`, that have no place in the running set."""
        # As long as the engine reports nobody waiting, all places are usable; what it has not seen yet will run.
        places = self._latest.num_requests_running if self._latest.num_requests_waiting else max_num_seqs
        return max(self.num_live + num_more - places, 0)

    def retry_after_s(self, num_ahead: int) -> float:
        """When `num_ahead` sequences will have ended, at the pace of the last ones, in seconds from now."""
        if len(self._ends) < 2 or self._ends[-1] <= self._ends[0]:
            return _SHORTEST_RETRY_S
        pace_s = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(max(num_ahead * pace_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)

    def snapshot(self) -> EngineStats:
        """One reading for the host."""
        totals = {name: getattr(self._latest, name) + self._ended_processes[name] for name in _TOTALS}
        return replace(
            self._latest,
            **totals
            | {
                "num_requests_waiting": max(self.num_live - self._latest.num_requests_running, 0),
                "engine_restarts_total": self.num_restarts,
                "finished_total": dict(self._finished),
                "histograms": self._recorder.snapshot(),
            },
        )
