"""In what order pieces of tensors are read, and who waits for them. Knows neither files nor devices."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from octavo.models.safetensors_file import StoredTensor


@dataclass(slots=True, eq=False)
class Arriving:
    """A tensor on its way: `flat` is its memory, `num_missing` counts chunks still to come; `error` ends it."""

    stored: StoredTensor
    flat: Tensor | None = None
    num_missing: int = 0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Numbers `begin` to `end` of a tensor."""

    arriving: Arriving
    begin: int
    end: int


class WeightQueue:
    """Hands chunks to the threads that read them. Owns what is on its way or lies ready; thread-safe.

    Tensors go in the order of `stored`, and one that is asked for earlier goes first: whoever takes them in another
    order, or takes only some, never waits in vain. No tensor is begun unasked while `ahead_bytes` have not been taken.
    `begin` gives a tensor its memory and cuts it into chunks.
    """

    def __init__(
        self, stored: Mapping[str, StoredTensor], ahead_bytes: int, begin: Callable[[Arriving], list[Chunk]]
    ) -> None:
        self._stored = stored
        self._unasked = deque(stored)
        self._ahead_bytes = ahead_bytes
        self._begin = begin
        self._arriving: dict[str, Arriving] = {}
        self._chunks: deque[Chunk] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: Exception | None = None

    def take(self, name: str) -> Arriving:
        """Waits until the tensor has arrived, or has an `error`, and forgets it here."""
        with self._changed:
            arriving = self._arriving.get(name)
            if arriving is None:
                arriving = self._start(name)
            while arriving.num_missing and arriving.error is None and not self._closed:
                self._changed.wait()
            if arriving.num_missing and arriving.error is None:
                arriving.error = self._error or RuntimeError("reading has ended")
            del self._arriving[name]
            self._changed.notify_all()
            return arriving

    def chunks(self) -> Iterator[Chunk]:
        """What one of the threads is to read, until the end."""
        while (chunk := self._next()) is not None:
            yield chunk

    def done(self, chunk: Chunk, error: Exception | None) -> None:
        """A chunk has been read, or cannot be."""
        with self._changed:
            chunk.arriving.num_missing -= 1
            chunk.arriving.error = chunk.arriving.error or error
            self._changed.notify_all()

    def close(self, error: Exception | None = None) -> None:
        """Ends the threads after the chunks in their hands; who waits for a tensor gets `error`."""
        with self._changed:
            self._closed = True
            self._error = self._error or error
            self._changed.notify_all()

    def _next(self) -> Chunk | None:
        with self._changed:
            while not self._closed:
                if self._chunks:
                    return self._chunks.popleft()
                if (
                    self._unasked
                    and sum(each.stored.size_bytes for each in self._arriving.values()) < self._ahead_bytes
                ):
                    self._start(self._unasked[0])
                else:
                    self._changed.wait()
            return None

    def _start(self, name: str) -> Arriving:
        """Puts a tensor before all others. The lock is held."""
        if name in self._unasked:
            self._unasked.remove(name)
        arriving = self._arriving[name] = Arriving(self._stored[name])
        try:
            chunks = self._begin(arriving)
        except RuntimeError as error:
            # No memory on the device.
            arriving.error = error
            return arriving
        arriving.num_missing = len(chunks)
        self._chunks.extendleft(reversed(chunks))
        self._changed.notify_all()
        return arriving
