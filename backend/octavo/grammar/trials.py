"""Trials: finds out whether a grammar can be used, in a process that is ended where that takes too long or too much.

One trial at a time, in the order in which they are asked for. Knows no text and no engine.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from octavo.grammar.messages import Tried, Try
from octavo.grammar.process import CANNOT_START, MAX_FALSE_STARTS, GrammarProcess
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

LONGEST_TRIAL_S = 1.0
MOST_MEMORY_BYTES = 1 << 30
# Streams go before whoever has just come; what a grammar takes of a processor is a few milliseconds.
_NICENESS = 5
_MAX_VERDICTS = 256
# A machine may have been busy: what took too long may be asked for again, but not at once.
_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a grammar cannot be used, or nothing; it holds until then (seconds, monotonic)."""

    error: str
    holds_until: float = float("inf")


class Trials:
    """Owns the process, the queue of trials and the latest verdicts, by what the grammars say."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Starts the process."""
        self._vocabulary = vocabulary
        self._process = GrammarProcess(vocabulary, MOST_MEMORY_BYTES, _NICENESS)
        self._num_false_starts = 0
        self._verdicts: OrderedDict[StructuredOutputs, Verdict] = OrderedDict()
        self._queue: dict[StructuredOutputs, None] = {}
        self._running: tuple[StructuredOutputs, float] | None = None

    @property
    def pid(self) -> int:
        """The process, for tests and debuggers."""
        return self._process.pid

    def error_of(self, asked: StructuredOutputs) -> str | None:
        """Why a grammar cannot be used, "" if it can; None while that is being found out, from the first call on."""
        if self._num_false_starts >= MAX_FALSE_STARTS:
            return CANNOT_START
        verdict = self._verdicts.get(asked)
        if verdict is not None and time.monotonic() < verdict.holds_until:
            self._verdicts.move_to_end(asked)
            return verdict.error
        if self._running is None or self._running[0] != asked:
            self._queue.setdefault(asked)
        return None

    def withdraw(self, asked: StructuredOutputs) -> None:
        """Nobody waits for it any more: not worth beginning."""
        self._queue.pop(asked, None)

    def turn(self, timeout_s: float = 0.0) -> None:
        """Hears what has come, ends what takes too long, begins what is next. Waits for an answer up to `timeout_s`."""
        if self._num_false_starts >= MAX_FALSE_STARTS:
            return
        messages = self._process.turn(timeout_s)
        if messages is None:
            self._start_anew(f"one that takes less than {MOST_MEMORY_BYTES >> 20} MiB to compile")
        for message in messages or []:
            if isinstance(message, Tried) and self._running is not None:
                self._settle(Verdict(message.error))
        now = time.monotonic()
        if self._running is not None and now > self._running[1]:
            self._start_anew(f"one that takes less than {LONGEST_TRIAL_S:g} s to compile")
        if self._running is None and self._queue and self._process.is_up:
            asked = next(iter(self._queue))
            del self._queue[asked]
            self._running = asked, now + LONGEST_TRIAL_S
            self._process.tell(Try(asked))
            self._process.flush()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()

    def _start_anew(self, expected: str) -> None:
        self._num_false_starts = 0 if self._process.is_up else self._num_false_starts + 1
        self._process.kill()
        if self._running is not None:
            self._settle(Verdict(expected, time.monotonic() + _RETRY_S))
        while self._num_false_starts < MAX_FALSE_STARTS:
            try:
                self._process = GrammarProcess(self._vocabulary, MOST_MEMORY_BYTES, _NICENESS)
                return
            except OSError:
                logger.exception("no grammar process could be started")
                self._num_false_starts += 1

    def _settle(self, verdict: Verdict) -> None:
        assert self._running is not None
        self._verdicts[self._running[0]] = verdict
        self._running = None
        if len(self._verdicts) > _MAX_VERDICTS:
            self._verdicts.popitem(last=False)
