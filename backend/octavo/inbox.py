"""Inbox: calls that other threads leave for one thread, and the descriptor that wakes it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable


class Inbox:
    """Any thread may post; one thread polls `fileno` and runs what was posted."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Readable when there are calls."""
        return self._wake_fd

    def post(self, call: Callable[[], None]) -> None:
        """Leaves a call. Takes no lock, so that a finalizer may use it too."""
        self._calls.append(call)
        os.eventfd_write(self._wake_fd, 1)

    def run_all(self) -> None:
        """Runs what was left, in order."""
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return
        while self._calls:
            self._calls.popleft()()

    def __del__(self) -> None:
        os.close(self._wake_fd)
