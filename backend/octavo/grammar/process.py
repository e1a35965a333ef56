"""GrammarProcess: starts and kills one grammar process, and talks to it without waiting. Knows no grammar."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import weakref

import msgspec

from octavo.grammar.messages import Begin, FromGrammar, Started
from octavo.vocabulary import Vocabulary
from octavo.wire import Connection

_MODULE = "octavo.grammar.worker"
TRIALS, TEXTS = "trials", "texts"
_STDERR = 2
# A process that dies so often before it is up will not come up.
MAX_FALSE_STARTS = 3
# To import a few modules and to sort the vocabulary takes a second, of a machine that does nothing else.
LONGEST_START_S = 60.0
# Whoever does not look for longer stood still, or slept: that is no time that the process had.
_LONGEST_LOOK_S = 1.0
CANNOT_START = "nothing: this server cannot start its grammar processes"


class GrammarProcess:
    """One process and this end of the socket to it.

    `is_up`: it can do what it is told at once. `awake_s`: seconds since it was started, without those in which this
    side itself stood still.
    """

    def __init__(self, vocabulary: Vocabulary, serves: str, memory_bytes: int = 0) -> None:
        """serves: TRIALS or TEXTS. memory_bytes: what one that serves texts may take beside the vocabulary before it is
        ended. Raises OSError where there is no room for a process."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    # -P: the working directory may hold folders named like packages.
                    [sys.executable, "-P", "-m", _MODULE, "--fd", str(theirs.fileno()), "--serves", serves],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR,
                )
            except OSError:
                ours.close()
                raise
        self._connection: Connection[FromGrammar] = Connection(ours, FromGrammar)
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        self._connection.queue(Begin(vocabulary, memory_bytes))
        self.is_up = False
        self.awake_s = 0.0
        self._looked_at = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def fileno(self) -> int:
        """The socket's file descriptor, to be polled for what `turn` reads."""
        return self._connection.fileno()

    def tell(self, message: msgspec.Struct) -> None:
        """Queues a message. Before the process is up only `Begin` may be on its way."""
        assert self.is_up, "it is told nothing before it is up"
        self._connection.queue(message)

    def flush(self) -> None:
        """Sends what fits without waiting."""
        self._connection.flush()

    def turn(self, timeout_s: float = 0.0) -> list[FromGrammar] | None:
        """Sends what fits, waits for an answer if there is time, and returns what has come.

        None once it has died, or will not come up.
        """
        self._look()
        self._connection.flush()
        try:
            messages = self._connection.read() if self._connection.wait(timeout_s) else []
        except (EOFError, msgspec.DecodeError):
            return None
        self.is_up = self.is_up or any(isinstance(message, Started) for message in messages)
        return messages if self.is_up or self.awake_s < LONGEST_START_S else None

    def kill(self) -> None:
        """Ends it and closes the connection; it is reaped when its memory has been freed, which may take a while."""
        if self._end.detach() is not None:
            self._process.kill()
            self._connection.close()
            threading.Thread(target=self._process.wait, name="octavo-reap", daemon=True).start()

    def _look(self) -> None:
        now = time.monotonic()
        self.awake_s += min(now - self._looked_at, _LONGEST_LOOK_S)
        self._looked_at = now


def _end(process: subprocess.Popen[bytes], connection: Connection[FromGrammar]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    connection.close()
