"""Trials: finds out whether a grammar can be used, and remembers it. Knows no text and no engine.

A process of its own tries grammars: see `trial_server`.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from octavo.grammar.messages import Exceeded, Limits, Tried, Try, Withdraw
from octavo.grammar.process import CANNOT_START, MAX_FALSE_STARTS, TRIALS, GrammarProcess
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Whoever asks has an answer within two seconds, however little of a processor streams leave to the trial; where others
# wait for their turn, within twice that.
LIMITS = Limits(cpu_s=1.0, awake_s=1.5, memory_bytes=1 << 29)
# Of the process that has not answered any of what it was asked.
LONGEST_SILENCE_S = 30.0
_MAX_DEATHS = 2
_MAX_VERDICTS = 256
# What took too much may be asked for again, but not at once; sooner where the processors were only busy.
_RETRY_S = 60.0
_RETRY_BUSY_S = 5.0
_LATER = "one that can be compiled in what other work leaves of this server's processors: a smaller one, or this one"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a grammar cannot be used, or nothing; it holds until then (seconds, monotonic)."""

    error: str
    holds_until: float = float("inf")


@dataclass(slots=True)
class _Trial:
    """One that somebody waits for."""

    number: int
    asked: StructuredOutputs
    asked_at_s: float
    num_deaths: int = 0


class Trials:
    """Owns the process, the trials that somebody waits for and the latest verdicts, by what the grammars say."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Starts the process."""
        self._vocabulary = vocabulary
        self._process = GrammarProcess(vocabulary, TRIALS)
        self._num_false_starts = 0
        self._verdicts: OrderedDict[StructuredOutputs, Verdict] = OrderedDict()
        self._trials: dict[StructuredOutputs, _Trial] = {}
        self._asked: dict[int, StructuredOutputs] = {}
        self._numbers = itertools.count()
        # On the process's clock.
        self._heard_at_s = 0.0

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
        if asked not in self._trials:
            # Not where one is found: of many that come at once all are to be heard of.
            while len(self._verdicts) > _MAX_VERDICTS:
                self._verdicts.popitem(last=False)
            trial = self._trials[asked] = _Trial(next(self._numbers), asked, self._process.awake_s)
            self._asked[trial.number] = asked
            self._tell(Try(trial.number, asked, LIMITS))
        return None

    def withdraw(self, asked: StructuredOutputs) -> None:
        """Nobody waits for it any more."""
        trial = self._trials.pop(asked, None)
        if trial is not None:
            del self._asked[trial.number]
        if trial is not None and not self.is_gone:
            self._tell(Withdraw(trial.number))

    def turn(self, timeout_s: float = 0.0) -> None:
        """Hears what has come; starts another process where this one has died or stands still. Waits for an answer up
        to `timeout_s`."""
        if self.is_gone:
            return
        was_up = self._process.is_up
        messages = self._process.turn(timeout_s)
        if self._process.is_up and not was_up:
            for trial in self._trials.values():
                trial.asked_at_s = self._process.awake_s
                self._tell(Try(trial.number, trial.asked, LIMITS))
        for message in messages or []:
            if isinstance(message, Tried):
                self._heard_at_s = self._process.awake_s
                self._settle(message)
        if messages is None or self._is_silent():
            self._start_anew()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()

    def _tell(self, message: Try | Withdraw) -> None:
        """A process that is not up yet will hear of the trials as they are then."""
        if self._process.is_up:
            self._process.tell(message)
            self._process.flush()

    def _is_silent(self) -> bool:
        if not self._process.is_up or not self._trials:
            return False
        asked_at_s = min(trial.asked_at_s for trial in self._trials.values())
        return self._process.awake_s > max(asked_at_s, self._heard_at_s) + LONGEST_SILENCE_S

    def _start_anew(self) -> None:
        logger.warning("the process that tries grammars has died or stands still; another one is started")
        self._num_false_starts = 0 if self._process.is_up else self._num_false_starts + 1
        self._process.kill()
        self._heard_at_s = 0.0
        for trial in list(self._trials.values()):
            trial.num_deaths += self._process.is_up
            if trial.num_deaths >= _MAX_DEATHS:
                self._settle(Tried(trial.number, exceeded=Exceeded.AWAKE))
        while not self.is_gone:
            try:
                self._process = GrammarProcess(self._vocabulary, TRIALS)
                return
            except OSError:
                logger.exception("no grammar process could be started")
                self._num_false_starts += 1

    def _settle(self, tried: Tried) -> None:
        asked = self._asked.pop(tried.number, None)
        if asked is None:  # withdrawn meanwhile
            return
        del self._trials[asked]
        self._verdicts[asked] = _verdict(tried)
        self._verdicts.move_to_end(asked)


def _verdict(tried: Tried) -> Verdict:
    match tried.exceeded:
        case None:
            return Verdict(tried.error)
        case Exceeded.CPU:
            expected, retry_s = f"one that takes less than {LIMITS.cpu_s:g} s to compile", _RETRY_S
        case Exceeded.AWAKE:
            expected, retry_s = f"{_LATER} {_RETRY_BUSY_S:g} s later", _RETRY_BUSY_S
        case Exceeded.DIED:
            most = f"{LIMITS.memory_bytes >> 20} MiB"
            expected, retry_s = f"one that takes less than {most} to compile; the process that did it died", _RETRY_S
    return Verdict(expected, time.monotonic() + retry_s)
