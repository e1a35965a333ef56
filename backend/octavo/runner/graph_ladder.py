"""GraphLadder: one captured graph for each of a ladder of batch sizes, captured one at a time, small first.

A batch is replayed by the smallest graph that holds it. Knows nothing of what the work is nor of what fills its inputs.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from octavo.runner.device import Device

logger = logging.getLogger(__name__)


def ladder_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes up to `max_num_seqs` (>= 1), ascending: close where a padded row costs much, `max_num_seqs` last."""
    sizes = [1, 2, 4, 8, 16, *range(24, 64, 8), *range(64, max_num_seqs, 16)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


class GraphLadder:
    """Owns the captured graphs. For the thread that owns the device."""

    def __init__(
        self,
        device: Device,
        sizes: Sequence[int],
        work_of: Callable[[int], Callable[[], None]],
        prepare: Callable[[int], None],
    ) -> None:
        """sizes: batch sizes, ascending.

        work_of(size) is the work for a batch of that size. prepare(size) fills its inputs with a batch that does no
        harm: the work is launched once with it before it is captured.
        """
        self._device = device
        self._work_of = work_of
        self._prepare = prepare
        self._missing = list(sizes)
        self._sizes: list[int] = []
        self._replays: dict[int, Callable[[], None]] = {}
        self.num_fallbacks = 0
        """Captures that failed: larger batches go on without a graph."""

    @property
    def largest(self) -> int:
        """The largest batch that has a graph; 0 without any."""
        return self._sizes[-1] if self._sizes else 0

    def capture_next(self, num_rows: int = 1) -> bool:
        """Captures the smallest missing size for at least `num_rows`; False when none was left, or it failed.

        Where a capture fails, for memory or for what the work does, larger sizes are given up.
        """
        index = bisect_left(self._missing, num_rows)
        if index == len(self._missing):
            return False
        size = self._missing.pop(index)
        try:
            replay = self._captured(size)
        except RuntimeError as error:
            logger.warning("no graph of %d rows, larger batches run without (%s)", size, str(error).partition("\n")[0])
            self.num_fallbacks += 1
            del self._missing[index:]
            return False
        insort(self._sizes, size)
        self._replays[size] = replay
        return True

    def find(self, num_rows: int) -> tuple[int, Callable[[], None]] | None:
        """(size, replay) of the smallest graph for at least `num_rows` rows; None if there is none (yet)."""
        index = bisect_left(self._sizes, num_rows)
        return (self._sizes[index], self._replays[self._sizes[index]]) if index < len(self._sizes) else None

    def _captured(self, size: int) -> Callable[[], None]:
        work = self._work_of(size)
        self._prepare(size)
        # Compiles what is not compiled yet, and lets the libraries take their workspaces: both break a capture.
        self._device.launch(work)
        return self._device.capture(work)
