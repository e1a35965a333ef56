"""WaitingQueue: sequences that have no row, best rank first; some are held back until another one has got further.

Knows ranks and who has ended. Whom to hold back, and until when, is the scheduler's business.
"""

from __future__ import annotations

import heapq

from octavo.core.sequence import Rank, Sequence


class WaitingQueue:
    """Owns a heap by rank, and behind each leader its followers: (published blocks of the leader wanted, sequence).

    Sequences that ended while they waited are dropped when they surface.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Sequence]] = []
        self._followers: dict[Sequence, list[tuple[int, Sequence]]] = {}
        self._num_held = 0
        self._num_ended = 0

    def __len__(self) -> int:
        return len(self._heap) + self._num_held - self._num_ended

    def add(self, seq: Sequence) -> None:
        """Lets a sequence wait."""
        heapq.heappush(self._heap, (seq.rank, seq))

    def first(self) -> Sequence | None:
        """The best-ranked sequence of those that are not held back."""
        while self._heap:
            seq = self._heap[0][1]
            if seq.finish_reason is None:
                return seq
            heapq.heappop(self._heap)
            self._num_ended -= 1
        return None

    def pop_first(self) -> None:
        """Takes out what `first` gave."""
        heapq.heappop(self._heap)

    def hold_first_back(self, leader: Sequence, num_blocks: int) -> None:
        """What `first` gave waits until `leader` has published its first `num_blocks` blocks, or has no row."""
        _, seq = heapq.heappop(self._heap)
        self._followers.setdefault(leader, []).append((num_blocks, seq))
        self._num_held += 1

    def let_go(self, leader: Sequence) -> None:
        """Followers of `leader` that have nothing to wait for any more go back to their places."""
        followers = self._followers.pop(leader, None)
        if followers is None:
            return
        left = [(n, seq) for n, seq in followers if leader.row is not None and n > leader.num_published_blocks]
        if left:
            self._followers[leader] = left
        self._num_held -= len(followers) - len(left)
        kept = {seq for _, seq in left}
        for _, seq in followers:
            if seq not in kept:
                self.add(seq)

    def ended(self) -> None:
        """One of the waiting sequences has ended."""
        self._num_ended += 1
        # What a client submits and cancels behind a queue that stands still must not pile up.
        if 2 * self._num_ended > len(self._heap) + self._num_held:
            self._heap = [entry for entry in self._heap if entry[1].finish_reason is None]
            heapq.heapify(self._heap)
            for leader, followers in self._followers.items():
                self._followers[leader] = [entry for entry in followers if entry[1].finish_reason is None]
            self._num_held = sum(map(len, self._followers.values()))
            self._num_ended = 0
