"""GraphLadder: one captured graph for each of a ladder of batch sizes, captured small first, one at a time.

A batch is replayed by the smallest graph that holds it. Knows nothing of what the work is nor of what fills its inputs.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch

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
        self._missing = list(reversed(sizes))
        self._sizes: list[int] = []
        self._replays: list[Callable[[], None]] = []
        self.num_fallbacks = 0
        """Captures that found no memory: larger batches go on without a graph."""

    @property
    def largest(self) -> int:
        """The largest batch that has a graph; 0 without any."""
        return self._sizes[-1] if self._sizes else 0

    def capture_next(self) -> bool:
        """Captures the next larger size; False when none was left. Where memory ends, the larger ones are given up."""
        if not self._missing:
            return False
        size = self._missing.pop()
        try:
            replay = self._captured(size)
        except torch.OutOfMemoryError:
            logger.warning("no memory for the graph of %d rows: larger batches run without", size)
            self.num_fallbacks += 1
            self._missing.clear()
            return False
        self._sizes.append(size)
        self._replays.append(replay)
        return True

    def find(self, num_rows: int) -> tuple[int, Callable[[], None]] | None:
        """(size, replay) of the smallest graph for at least `num_rows` rows; None if there is none (yet)."""
        index = bisect_left(self._sizes, num_rows)
        return (self._sizes[index], self._replays[index]) if index < len(self._sizes) else None

    def _captured(self, size: int) -> Callable[[], None]:
        work = self._work_of(size)
        self._prepare(size)
        # Compiles what is not compiled yet, and lets the libraries take their workspaces: both break a capture.
        self._device.launch(work)
        return self._device.capture(work)
