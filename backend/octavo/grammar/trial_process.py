"""TrialProcess: tries one grammar out in a fork of this process, which may be ended at any time. Knows no queue."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import time
from typing import NoReturn

from octavo.grammar.compiler import Compiler, UnusableGrammar
from octavo.grammar.memory import limit_growth
from octavo.grammar.messages import Try

logger = logging.getLogger(__name__)

# So that no reason is something else than no answer.
_MARK = b"!"
# Less than a pipe holds, so that who writes it never waits.
_MOST_ANSWER_BYTES = 1 << 12
_GREATEST_NICENESS = 19
# Of a processor, for who has stepped back and has less than half of one: whoever else computes there loses a part of
# what it has, since the parts of a step wait for each other.
_SHARE_BESIDE_OTHERS = 0.05
# Source: prctl(2).
_PR_SET_PDEATHSIG = 1


class TrialProcess:
    """A trial that runs. This process must be of one thread when it begins; forking takes a millisecond.

    `cpu_s` and `awake_s`: what it has had of a processor, and of the time in which this process was awake, when `look`
    was last called. `has_stepped_back`: it only has what others leave of the processors.
    """

    def __init__(self, compiler: Compiler, trial: Try) -> None:
        """Begins. Raises OSError where there is no room for a process."""
        self.trial = trial
        self.cpu_s = 0.0
        self.awake_s = 0.0
        self.has_stepped_back = False
        self._resumes_at_s = 0.0
        self._is_paused = False
        self._answers, ours = os.pipe()
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self._answers)
            os.close(ours)
            raise
        if self.pid == 0:
            _try_out(compiler, trial, ours, parent)
        os.close(ours)

    def fileno(self) -> int:
        """To be polled for what `answer` reads."""
        return self._answers

    def look(self, passed_s: float) -> float:
        """So much time has passed; what it has had of a processor meanwhile."""
        self.awake_s += passed_s
        before_s = self.cpu_s
        with contextlib.suppress(OSError):  # it has been reaped, or is being ended
            self.cpu_s = time.clock_gettime(_cpu_clock_of(self.pid))
        return self.cpu_s - before_s

    @property
    def has_spoken(self) -> bool:
        """Whether there is an answer, or never will be one."""
        return bool(select.select([self._answers], [], [], 0)[0])

    def answer(self) -> str | None:
        """Once it has spoken: why the grammar cannot be used, "" if it can; None where the process has died."""
        data = os.read(self._answers, _MOST_ANSWER_BYTES)
        return data[1:].decode("utf-8", "replace") if data else None

    def step_back(self) -> None:
        """From now on it has what others leave of the processors."""
        if self.has_stepped_back:
            return
        self.has_stepped_back = True
        with contextlib.suppress(ProcessLookupError):
            try:
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
            except PermissionError:  # a sandbox may know of nothing but niceness
                os.setpriority(os.PRIO_PROCESS, self.pid, _GREATEST_NICENESS)

    def give_way(self, used_s: float, passed_s: float) -> None:
        """After `look`, for one that has stepped back: pauses it where others compute, and lets it go on later."""
        if self._is_paused:
            self._is_paused = self.awake_s < self._resumes_at_s
            if not self._is_paused:
                os.kill(self.pid, signal.SIGCONT)
        elif used_s < passed_s / 2:
            self._is_paused, self._resumes_at_s = True, self.awake_s + used_s / _SHARE_BESIDE_OTHERS
            os.kill(self.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Whatever it is doing."""
        os.close(self._answers)
        os.kill(self.pid, signal.SIGKILL)  # nobody else can have its number before it is reaped

    def is_reaped(self) -> bool:
        """After `end`: whether it is gone, with its memory. Does not wait."""
        return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid


def _cpu_clock_of(pid: int) -> int:
    """The clock of a process's time on processors. Source: clock_getcpuclockid(3), as Linux makes its numbers."""
    return (~pid << 3) | 2


def _try_out(compiler: Compiler, trial: Try, answers: int, parent: int) -> NoReturn:
    """The whole life of the fork. Native code that runs out of memory ends it by a signal."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            limit_growth(trial.limits.memory_bytes)
            os.write(answers, _outcome(compiler, trial)[:_MOST_ANSWER_BYTES])
            status = 0
    except MemoryError:
        pass
    except Exception:
        logger.exception("a trial broke")
    finally:
        os._exit(status)


def _outcome(compiler: Compiler, trial: Try) -> bytes:
    try:
        compiler.try_out(trial.asked)
    except UnusableGrammar as error:
        return _MARK + str(error).encode()
    return _MARK
