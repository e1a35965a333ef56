"""LiveTable: the requests that have not ended and the state of the engine, as all threads of the front see them.

Decides who may enter. Knows neither the engine process nor what is in a request.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterable

from octavo.config import EngineConfig
from octavo.errors import EngineDead, EngineError, InvalidRequest, Overloaded
from octavo.front_stats import FrontStats
from octavo.live_request import LiveRequest
from octavo.outputs import FinishReason
from octavo.stats import EngineStats, Observations


class State(enum.Enum):
    """Of the engine process. DEAD is for ever: it failed for good, or was shut down."""

    LOADING = enum.auto()
    READY = enum.auto()
    DEAD = enum.auto()


class LiveTable:
    """Every method may be called from any thread; only the front thread changes `state` and removes requests."""

    def __init__(self, config: EngineConfig) -> None:
        """`config` has been resolved; the engine process may resolve it otherwise, see `set_ready`."""
        self.config = config
        self.state = State.LOADING
        self.draining = False
        self._failure: EngineError | None = None
        self._live: dict[str, LiveRequest] = {}
        self._request_ids: set[str] = set()
        self._stats = FrontStats(config.max_model_len or 1)
        self._changed = threading.Condition()

    def check_room(self, request_id: str, num_sequences: int) -> None:
        """Raises what `add` would raise: a request that has no chance need not be tokenised first."""
        with self._changed:
            if self.state is State.DEAD:
                raise EngineDead(str(self._failure))
            if self.draining:
                raise EngineDead("the engine is shutting down")
            if request_id in self._request_ids:
                raise InvalidRequest("request_id", request_id, "an id that no live request has")
            max_num_seqs, limit = self.config.max_num_seqs or 1, self.config.max_waiting
            num_waiting = self._stats.num_waiting(max_num_seqs)
            if num_waiting >= limit and self._stats.num_waiting(max_num_seqs, num_sequences):
                retry_after_s = self._stats.retry_after_s(num_waiting - limit + 1)
                raise Overloaded(num_waiting, limit, retry_after_s)

    def add(self, live: LiveRequest) -> None:
        """Takes a request in. Raises EngineDead, InvalidRequest for an id in use, Overloaded."""
        with self._changed:
            self.check_room(live.request_id, len(live.children))
            self._live[live.wire_id] = live
            self._request_ids.add(live.request_id)
            self._stats.num_live += len(live.children)

    def get(self, wire_id: str) -> LiveRequest | None:
        """The live request of that id."""
        return self._live.get(wire_id)

    def remove(self, live: LiveRequest) -> bool:
        """Its id is free again; whether it was there."""
        with self._changed:
            found = self._live.pop(live.wire_id, None) is not None
            if found:
                self._request_ids.discard(live.request_id)
                if not self._live:
                    self._changed.notify_all()
            return found

    def all(self) -> list[LiveRequest]:
        """The live requests in the order of their arrival."""
        with self._changed:
            return list(self._live.values())

    def __len__(self) -> int:
        """How many requests are live."""
        return len(self._live)

    def count(self, stats: EngineStats | None, ends: Iterable[FinishReason], seen: Observations) -> None:
        """Takes the engine's counters, the ends of sequences, and what was observed."""
        with self._changed:
            if stats is not None:
                self._stats.update(stats)
            self._stats.observe(seen)
            self._stats.count_ends(ends, time.monotonic())

    def set_ready(self, config: EngineConfig, stats: EngineStats) -> None:
        """The engine process is loaded and has resolved the settings; `stats` are those before its first step."""
        with self._changed:
            self.config = config
            # Until the first step says more: whoever routes by free blocks must not take an idle engine for a full one.
            self._stats.update(stats)
            self.state = State.READY
            self._changed.notify_all()

    def set_loading(self) -> None:
        """The engine process is being started anew."""
        with self._changed:
            self.state = State.LOADING
            self._stats.process_ended()
            self._stats.num_restarts += 1

    def set_dead(self, failure: EngineError) -> None:
        """For ever, because of `failure`; an earlier failure counts."""
        with self._changed:
            self.state = State.DEAD
            self._failure = self._failure or failure
            self._stats.process_ended()
            self._changed.notify_all()

    def wait_ready(self, timeout_s: float | None) -> None:
        """Raises what the engine failed with, or TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.state is not State.LOADING, timeout_s):
                raise TimeoutError(f"the engine is not ready after {timeout_s} s")
            if self._failure is not None:
                raise type(self._failure)(str(self._failure))

    def drain(self, timeout_s: float) -> None:
        """Lets nobody in any more and waits until all are out, or the time is over."""
        with self._changed:
            self.draining = True
            self._changed.wait_for(lambda: not self._live, timeout_s)

    def snapshot(self) -> EngineStats:
        """The counters and gauges as of now."""
        with self._changed:
            return self._stats.snapshot()
