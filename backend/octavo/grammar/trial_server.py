"""TrialServer: tries grammars out for one engine, each in a fork, so that texts lose next to nothing meanwhile.

A trial has a processor like anybody else while there is credit; after that it has what others leave. Knows nobody who
waits.
"""

from __future__ import annotations

import logging
import select
import time

from octavo.grammar.compiler import Compiler
from octavo.grammar.messages import Exceeded, ToGrammar, Tried, Try, Withdraw
from octavo.grammar.trial_process import TrialProcess
from octavo.wire import Connection

logger = logging.getLogger(__name__)

# One that takes long does not keep the short ones waiting.
_MOST_AT_ONCE = 2
# Of one processor, of the time that passes, and at once. Grammars of real programs take a millisecond, some 40.
_CREDIT_SHARE = 0.005
_MOST_CREDIT_S = 0.05
# While trials run on credit, and while none does.
_LOOK_S = 0.01
_LOOK_BEHIND_S = 0.03
# Who does not look for longer stood still, or slept: that is no time that a trial had.
_LONGEST_LOOK_S = 0.1


class TrialServer:
    """Owns the queue, the running trials and the credit. Has no other thread."""

    def __init__(self, compiler: Compiler, connection: Connection[ToGrammar]) -> None:
        self._compiler = compiler
        self._connection = connection
        self._queue: dict[int, Try] = {}
        self._running: list[TrialProcess] = []
        # Their answers do not matter any more, but their memory has not been freed.
        self._ending: list[TrialProcess] = []
        # Trials whose process has ended by itself once.
        self._died: set[int] = set()
        self._credit_s = _MOST_CREDIT_S
        self._looked_at = time.monotonic()

    def run(self) -> None:
        """Serves until the engine ends, which raises EOFError or ConnectionError."""
        while True:
            self._wait()
            if self._connection.wait(0):
                for message in self._connection.read():
                    self._handle(message)
            self._look()
            while self._queue and len(self._running) + len(self._ending) < _MOST_AT_ONCE:
                self._begin(min(self._queue.values(), key=lambda trial: len(trial.asked.text)))

    def _wait(self) -> None:
        poll = select.poll()
        for fd in (self._connection.fileno(), *(process.fileno() for process in self._running)):
            poll.register(fd, select.POLLIN)
        poll.poll(self._longest_wait_ms())

    def _longest_wait_ms(self) -> float | None:
        if not all(process.has_stepped_back for process in self._running):
            return _LOOK_S * 1000
        return _LOOK_BEHIND_S * 1000 if self._running or self._ending or self._queue else None

    def _handle(self, message: ToGrammar) -> None:
        match message:
            case Try(number):
                self._queue[number] = message
            case Withdraw(number):
                self._queue.pop(number, None)
                self._died.discard(number)
                for process in [process for process in self._running if process.trial.number == number]:
                    self._end(process)

    def _begin(self, trial: Try) -> None:
        del self._queue[trial.number]
        try:
            process = TrialProcess(self._compiler, trial)
        except OSError:
            logger.exception("no process could be started for a trial")
            self._connection.send(Tried(trial.number, exceeded=Exceeded.DIED))
            return
        self._running.append(process)
        if self._credit_s <= 0:
            process.step_back()

    def _look(self) -> None:
        """What has become of the running trials."""
        now = time.monotonic()
        passed_s, self._looked_at = now - self._looked_at, now
        self._credit_s = min(self._credit_s + passed_s * _CREDIT_SHARE, _MOST_CREDIT_S)
        self._ending = [process for process in self._ending if not process.is_reaped()]
        for process in list(self._running):
            used_s = process.look(min(passed_s, _LONGEST_LOOK_S))
            if process.has_stepped_back:
                process.give_way(used_s, passed_s)
            else:
                self._credit_s -= used_s
            self._settle(process)
        if self._credit_s <= 0:
            for process in self._running:
                process.step_back()

    def _settle(self, process: TrialProcess) -> None:
        """Answers if there is an end to the trial."""
        trial, limits = process.trial, process.trial.limits
        if process.has_spoken:
            answer = process.answer()
            if answer is not None:
                self._answer(process, Tried(trial.number, error=answer))
            elif trial.number in self._died:
                self._answer(process, Tried(trial.number, exceeded=Exceeded.DIED))
            else:
                logger.warning("a grammar's process ended in its trial: another one tries again")
                self._end(process)
                self._died.add(trial.number)
                self._queue[trial.number] = trial
        elif process.cpu_s > limits.cpu_s:
            self._answer(process, Tried(trial.number, exceeded=Exceeded.CPU))
        elif process.awake_s > limits.awake_s:
            self._answer(process, Tried(trial.number, exceeded=Exceeded.AWAKE))

    def _answer(self, process: TrialProcess, tried: Tried) -> None:
        self._end(process)
        self._died.discard(tried.number)
        self._connection.send(tried)

    def _end(self, process: TrialProcess) -> None:
        process.end()
        self._running.remove(process)
        self._ending.append(process)
