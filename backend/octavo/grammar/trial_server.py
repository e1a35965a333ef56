"""TrialServer: tries grammars out for one engine, in forks, so that streams lose next to nothing by those in vain.

A trial begins with a processor like anybody else; where it takes long and there is no credit left, it has what others
leave. Knows nobody who waits.
"""

from __future__ import annotations

import logging
import select
import time
from dataclasses import dataclass

from octavo.grammar.compiler import Compiler
from octavo.grammar.messages import Exceeded, ToGrammar, Tried, Try, Withdraw
from octavo.grammar.processor import has_quota
from octavo.grammar.trial_process import TrialProcess
from octavo.wire import Connection

logger = logging.getLogger(__name__)

# One that takes long does not keep the others waiting.
_MOST_AT_ONCE = 2
# Of a processor, for each trial, whatever others did. Grammars of real programs take one millisecond, some 40.
_OWN_S = 0.002
# Of one processor, of the time that passes, and at once, beyond that: for all trials that end in vain.
_CREDIT_SHARE = 0.005
_MOST_CREDIT_S = 0.12
# While a trial runs at full weight, while none does, and where a process is ending.
_LOOK_S = 0.002
_LOOK_BEHIND_S = 0.03
_LOOK_AT_ENDS_S = 0.002
# Who does not look for longer stood still, or slept: that is no time that a trial had.
_LONGEST_LOOK_S = 0.1
# Of a trial that has stepped back, where another one waits.
_LONGEST_BESIDE_QUEUE_S = 0.3
# A text that is longer by so much goes behind whoever asks within the next second.
_CHARACTERS_A_SECOND = 1e5


@dataclass(slots=True)
class _Waiting:
    """`asked_at_s` is on the server's own clock, which stands still when it does."""

    trial: Try
    asked_at_s: float
    num_deaths: int = 0

    @property
    def turn_s(self) -> float:
        behind_s = len(self.trial.asked.text) / _CHARACTERS_A_SECOND
        return self.asked_at_s + min(behind_s, self.trial.limits.awake_s / 2)


class TrialServer:
    """Owns the trials that wait, the processes and the credit. Has no other thread."""

    def __init__(self, compiler: Compiler, connection: Connection[ToGrammar]) -> None:
        self._compiler = compiler
        self._connection = connection
        self._waiting: dict[int, _Waiting] = {}
        self._running: dict[int, _Waiting] = {}
        self._processes: list[TrialProcess] = []
        # Nothing is asked of them any more, but their memory has not been freed.
        self._ending: list[TrialProcess] = []
        self._credit_s = _MOST_CREDIT_S
        self._awake_s = 0.0
        self._looked_at = time.monotonic()
        self._has_quota = has_quota()

    def run(self) -> None:
        """Serves until the engine ends, which raises EOFError or ConnectionError."""
        while True:
            self._wait()
            passed_s = self._pass_time()
            self._ending = [process for process in self._ending if not process.is_reaped()]
            for process in list(self._processes):
                self._look_at(process, passed_s)
            if self._connection.wait(0):
                for message in self._connection.read():
                    self._handle(message)
            self._refuse_late_ones()
            while self._waiting and self._begin(min(self._waiting.values(), key=lambda waiting: waiting.turn_s)):
                pass

    def _wait(self) -> None:
        poll = select.poll()
        for fd in self._inherited():
            poll.register(fd, select.POLLIN)
        poll.poll(self._longest_wait_ms())

    def _longest_wait_ms(self) -> float | None:
        busy = [process for process in self._processes if process.trial is not None]
        if self._ending:
            return _LOOK_AT_ENDS_S * 1000
        if not all(process.has_stepped_back for process in busy):
            return _LOOK_S * 1000
        return _LOOK_BEHIND_S * 1000 if busy or self._waiting else None

    def _inherited(self) -> list[int]:
        return [self._connection.fileno(), *(process.fileno() for process in self._processes)]

    def _pass_time(self) -> float:
        """What of the time since the last call this process was awake, in seconds."""
        now = time.monotonic()
        passed_s, self._looked_at = now - self._looked_at, now
        self._credit_s = min(self._credit_s + passed_s * _CREDIT_SHARE, _MOST_CREDIT_S)
        passed_s = min(passed_s, _LONGEST_LOOK_S)
        self._awake_s += passed_s
        return passed_s

    def _handle(self, message: ToGrammar) -> None:
        match message:
            case Try(number):
                self._waiting[number] = _Waiting(message, self._awake_s)
            case Withdraw(number):
                self._waiting.pop(number, None)
                for process in [each for each in self._processes if each.trial and each.trial.number == number]:
                    self._end(process)

    def _begin(self, waiting: _Waiting) -> bool:
        """False where there is no process for it yet."""
        process = next((each for each in self._processes if each.trial is None), None)
        if process is None:
            if len(self._processes) + len(self._ending) >= _MOST_AT_ONCE:
                return False
            try:
                process = TrialProcess(self._compiler, self._inherited())
            except OSError:
                logger.exception("no process could be started for a trial")
                return False
            self._processes.append(process)
            if self._credit_s <= 0:
                # To start takes longer than most trials, and the last ones were in vain.
                process.step_back()
        self._running[waiting.trial.number] = self._waiting.pop(waiting.trial.number)
        process.begin(waiting.trial)
        return True

    def _look_at(self, process: TrialProcess, passed_s: float) -> None:
        trial = process.trial
        used_s = 0.0
        if trial is not None:
            used_s = process.look(passed_s)
            if not process.has_stepped_back:
                self._charge(process, max(min(used_s, process.cpu_s - _OWN_S), 0.0))
        try:
            tried = process.answer()
        except EOFError:
            self._lose(process)
            return
        if trial is None:
            return
        if tried is not None:
            self._hear(process, tried)
            return
        exceeded = self._limit_of(process, trial)
        if exceeded is not None:
            self._end(process)
            self._answer(Tried(trial.number, exceeded=exceeded))
        elif process.has_stepped_back:
            process.give_way(used_s, passed_s, self._has_quota)
        elif self._credit_s <= 0 and process.cpu_s > _OWN_S:
            process.step_back()

    def _charge(self, process: TrialProcess, used_s: float) -> None:
        process.charged_s += used_s
        # One late look does not take away the next seconds' credit.
        self._credit_s = max(self._credit_s - used_s, -_MOST_CREDIT_S)

    def _hear(self, process: TrialProcess, tried: Tried) -> None:
        """Its trial is over. What was not in vain takes no credit."""
        if not tried.error:
            self._credit_s = min(self._credit_s + process.charged_s, _MOST_CREDIT_S)
        if process.has_stepped_back or process.has_grown():
            self._end(process)
        self._answer(tried)

    def _limit_of(self, process: TrialProcess, trial: Try) -> Exceeded | None:
        """Which limit the trial has met."""
        if process.cpu_s > trial.limits.cpu_s:
            return Exceeded.CPU
        is_awaited = bool(self._waiting) and process.has_stepped_back
        longest_s = min(trial.limits.awake_s, _LONGEST_BESIDE_QUEUE_S) if is_awaited else trial.limits.awake_s
        return Exceeded.AWAKE if process.awake_s > longest_s or process.is_paused_at(longest_s) else None

    def _refuse_late_ones(self) -> None:
        for waiting in list(self._waiting.values()):
            if self._awake_s - waiting.asked_at_s > waiting.trial.limits.awake_s:
                del self._waiting[waiting.trial.number]
                self._answer(Tried(waiting.trial.number, exceeded=Exceeded.AWAKE))

    def _lose(self, process: TrialProcess) -> None:
        """It has ended by itself: between two trials that is all right, with its second trial the grammar's fault."""
        trial = process.trial
        lost = self._running.get(trial.number) if trial is not None else None
        self._end(process)
        if lost is None:
            return
        if lost.num_deaths:
            self._answer(Tried(lost.trial.number, exceeded=Exceeded.DIED))
        else:
            logger.warning("a grammar's process ended in its trial: another one tries again")
            lost.num_deaths += 1
            self._waiting[lost.trial.number] = lost

    def _end(self, process: TrialProcess) -> None:
        if process.trial is not None:
            self._running.pop(process.trial.number, None)
        process.end()
        self._processes.remove(process)
        self._ending.append(process)

    def _answer(self, tried: Tried) -> None:
        self._running.pop(tried.number, None)
        self._connection.send(tried)
