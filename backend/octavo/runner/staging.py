"""Staging: a step's numbers on their way to the device, all in one copy.

Knows what a copy needs, nothing of what the numbers mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.runner.device import Arrival, Device
from octavo.runner.input_batch import Integers


class Staging:
    """A ring of pinned buffers, and the one place on the device that they are copied to. Owns both.

    A copy may be read late, so a buffer is filled again only when a result that was fetched after it has arrived. The
    place on the device is one, as steps are computed one after the other: a captured graph finds its inputs there.
    """

    def __init__(self, device: Device, num_words: int, num_slots: int) -> None:
        """`num_words` is how many numbers one step may have."""
        self.num_words = num_words
        self.place = torch.zeros(num_words, dtype=torch.int64, device=device.torch_device)
        self._buffers = [device.pinned(num_words) for _ in range(num_slots)]
        self._arrivals: list[Arrival | None] = [None] * num_slots
        self._turn = -1

    def begin(self) -> StagedStep:
        """An empty buffer for the next step."""
        self._turn = (self._turn + 1) % len(self._buffers)
        arrival = self._arrivals[self._turn]
        if arrival is not None:
            arrival.wait()
        return StagedStep(self._buffers[self._turn], self.place)

    def used_until(self, arrival: Arrival) -> None:
        """The buffer that `begin` gave last may be filled again when this has arrived."""
        self._arrivals[self._turn] = arrival


class StagedStep:
    """One step's numbers, one array behind the other."""

    def __init__(self, buffer: Tensor, place: Tensor) -> None:
        self._buffer = buffer
        self._words = buffer.numpy()
        self._place = place
        self._num_words = 0

    def put(self, numbers: Integers) -> Tensor:
        """Adds an array, int64 [n]; returns where it will lie on the device once `send` has run."""
        begin, self._num_words = self._num_words, self._num_words + len(numbers)
        self._words[begin : self._num_words] = numbers
        return self._place[begin : self._num_words]

    def send(self) -> None:
        """The copy: part of the step's launched work, before anything that reads the numbers."""
        self._place[: self._num_words].copy_(self._buffer[: self._num_words], non_blocking=True)
