"""How long each phase of start-up takes, told by the reports of progress that go through here."""

from __future__ import annotations

import time
from collections.abc import Callable

OnProgress = Callable[[str, float], None]


class StartupClock:
    """Stands for `on_progress(phase, fraction)` and hands every report on. A phase lasts until another one is named.

    A phase that comes back adds to what it took before.
    """

    def __init__(self, on_progress: OnProgress | None, now: Callable[[], float] = time.monotonic) -> None:
        """now: seconds."""
        self._on_progress = on_progress
        self._now = now
        self._phase = ""
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def __call__(self, phase: str, fraction: float) -> None:
        """Takes a report."""
        if phase != self._phase:
            self._end_phase()
            self._phase = phase
        if self._on_progress is not None:
            self._on_progress(phase, fraction)

    def finish(self) -> dict[str, float]:
        """Phase -> seconds, in the order in which they began; together they are all the time since the first report."""
        self._end_phase()
        self._phase = ""
        return dict(self._seconds)

    def _end_phase(self) -> None:
        now = self._now()
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._since = now
