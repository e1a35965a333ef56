"""Trials: finds out whether a grammar can be used, in a process that is ended where that takes too long or too much.

One trial at a time, the shortest grammar first. Knows no text and no engine.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import OrderedDict
from dataclasses import dataclass

from octavo.grammar.messages import Tried, Try
from octavo.grammar.process import CANNOT_START, MAX_FALSE_STARTS, GrammarProcess
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Of a processor; on a machine that is busy with something else that may be many seconds.
LONGEST_TRIAL_S = 1.0
# Of a process that has neither an answer nor used up its time: it stands still.
LONGEST_SILENCE_S = 30.0
MOST_MEMORY_BYTES = 1 << 30
# Streams go before whoever has just come; what a grammar takes of a processor is a few milliseconds.
_NICENESS = 5
_MAX_VERDICTS = 256
# What took too much may be asked for again, but not at once.
_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a grammar cannot be used, or nothing; it holds until then (seconds, monotonic)."""

    error: str
    holds_until: float = float("inf")


class Trials:
    """Owns the process, the queue of trials and the latest verdicts, by what the grammars say.

    A process may die for reasons of its own, or of what it tried before: only the grammar with which a second one
    dies is refused for that.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Starts the process."""
        self._vocabulary = vocabulary
        self._process = GrammarProcess(vocabulary, MOST_MEMORY_BYTES, _NICENESS)
        self._num_false_starts = 0
        self._verdicts: OrderedDict[StructuredOutputs, Verdict] = OrderedDict()
        self._queue: dict[StructuredOutputs, None] = {}
        self._suspects: set[StructuredOutputs] = set()
        self._running: tuple[StructuredOutputs, float] | None = None
        # Whether anybody waits for the running one.
        self._is_wanted = False

    @property
    def pid(self) -> int:
        """The process, for tests and debuggers."""
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """Whether no process could be started, and none will be."""
        return self._num_false_starts >= MAX_FALSE_STARTS

    def fileno(self) -> int:
        """To be polled for what `turn` hears, unless it is gone."""
        return self._process.fileno()

    def error_of(self, asked: StructuredOutputs) -> str | None:
        """Why a grammar cannot be used, "" if it can; None while that is being found out, from the first call on."""
        if self.is_gone:
            return CANNOT_START
        verdict = self._verdicts.get(asked)
        if verdict is not None and time.monotonic() < verdict.holds_until:
            self._verdicts.move_to_end(asked)
            return verdict.error
        if self._running is not None and self._running[0] == asked:
            self._is_wanted = True
        else:
            self._queue.setdefault(asked)
        return None

    def withdraw(self, asked: StructuredOutputs) -> None:
        """Nobody waits for it any more: not worth beginning, nor beginning anew."""
        if self._running is not None and self._running[0] == asked:
            self._is_wanted = False
        self._queue.pop(asked, None)
        self._suspects.discard(asked)

    def turn(self, timeout_s: float = 0.0) -> None:
        """Hears what has come, ends what stands still, begins what is next. Waits for an answer up to `timeout_s`."""
        if self.is_gone:
            return
        messages = self._process.turn(timeout_s)
        if messages is None:
            self._start_anew(self._process.ended_by)
        for message in messages or []:
            if isinstance(message, Tried) and self._running is not None:
                self._settle(self._running[0], Verdict(message.error))
        if self._running is not None and self._process.awake_s > self._running[1]:
            self._start_anew(None)
        if self._running is None and self._queue and self._process.is_up:
            self._begin(min(self._queue, key=lambda asked: len(asked.text)))

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()

    def _begin(self, asked: StructuredOutputs) -> None:
        del self._queue[asked]
        self._running = asked, self._process.awake_s + LONGEST_SILENCE_S
        self._is_wanted = True
        self._process.tell(Try(asked, LONGEST_TRIAL_S))
        self._process.flush()

    def _start_anew(self, ended_by: int | None) -> None:
        """The process was ended by this signal, or stands still."""
        self._num_false_starts = 0 if self._process.is_up else self._num_false_starts + 1
        if self._running is not None:
            self._blame(self._running[0], ended_by)
        self._process.kill()
        while not self.is_gone:
            try:
                self._process = GrammarProcess(self._vocabulary, MOST_MEMORY_BYTES, _NICENESS)
                return
            except OSError:
                logger.exception("no grammar process could be started")
                self._num_false_starts += 1

    def _blame(self, asked: StructuredOutputs, ended_by: int | None) -> None:
        """The process has ended with this trial: refuses the grammar if that is sure to be its fault."""
        if ended_by == signal.SIGPROF:
            self._refuse(asked, f"one that takes less than {LONGEST_TRIAL_S:g} s to compile")
        elif asked in self._suspects:
            most = f"{LONGEST_SILENCE_S:g} s and {MOST_MEMORY_BYTES >> 20} MiB"
            self._refuse(asked, f"one that takes less than {most} to compile")
        else:
            logger.warning("a grammar process ended in a trial (signal %s): another one tries again", ended_by)
            if self._is_wanted:
                self._suspects.add(asked)
                self._queue.setdefault(asked)
            self._running = None

    def _refuse(self, asked: StructuredOutputs, expected: str) -> None:
        self._settle(asked, Verdict(expected, time.monotonic() + _RETRY_S))

    def _settle(self, asked: StructuredOutputs, verdict: Verdict) -> None:
        self._running = None
        self._suspects.discard(asked)
        self._verdicts[asked] = verdict
        if len(self._verdicts) > _MAX_VERDICTS:
            self._verdicts.popitem(last=False)
