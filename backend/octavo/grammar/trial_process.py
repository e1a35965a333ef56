"""TrialProcess: a fork of this process that tries grammars, one after the other, and may be ended at any time.

Knows no queue. What a trial may take is for others to decide.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Iterable
from typing import NoReturn

import msgspec

from octavo.grammar.compiler import Compiler, UnusableGrammar
from octavo.grammar.memory import limit_growth, resident_bytes
from octavo.grammar.messages import FromGrammar, Started, ToGrammar, Tried, Try
from octavo.grammar.processor import cpu_s_of, step_back
from octavo.wire import Connection

logger = logging.getLogger(__name__)

# Of a processor, for a trial that others leave less than half of one: a step waits for its slowest part, so it loses
# even by what is idle in between.
_SHARE_BESIDE_OTHERS = 0.03
_LONGEST_PAUSE_S = 0.3
# In less time nobody can tell who has what of a processor.
_SHORTEST_LOOK_S = 0.02
# Of memory, behind a trial.
_MOST_KEPT_BYTES = 1 << 26
_LONGEST_WAIT_S = 60.0
# Source: prctl(2) and proc(5).
_PR_SET_PDEATHSIG = 1
_GREATEST_OOM_SCORE = "1000"


class TrialProcess:
    """One process. This one must be of one thread when it begins.

    `trial`: what it tries, None between two. Of that trial: `cpu_s` and `awake_s`, what it has had of a processor, and
    of the time in which this process was awake, when `look` was last called; `charged_s`, for who keeps count.
    `has_stepped_back`: it only has what others leave of the processors, for good.
    """

    def __init__(self, compiler: Compiler, inherited: Iterable[int]) -> None:
        """inherited: file descriptors of this process that the new one must not keep open. Raises OSError where there
        is no room for a process."""
        self.trial: Try | None = None
        self.cpu_s = 0.0
        self.awake_s = 0.0
        self.charged_s = 0.0
        self.has_stepped_back = False
        self._is_up = False
        self._began_bytes = 0
        self._had_s = 0.0
        self._since_s = self._used_s = 0.0
        self._resumes_at_s: float | None = None
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        with theirs:
            try:
                self.pid = os.fork()
            except OSError:
                ours.close()
                raise
            if self.pid == 0:
                _live(compiler, theirs, [ours.fileno(), *inherited], parent)
        self._connection: Connection[FromGrammar] = Connection(ours, FromGrammar)

    def fileno(self) -> int:
        """To be polled for what `answer` reads."""
        return self._connection.fileno()

    def begin(self, trial: Try) -> None:
        """Between two trials."""
        self.trial = trial
        self.cpu_s = self.awake_s = self.charged_s = 0.0
        if self._is_up:
            self._pass_on(trial)

    def _pass_on(self, trial: Try) -> None:
        """What it takes to start is no trial's."""
        with contextlib.suppress(OSError):
            self._had_s = cpu_s_of(self.pid)
        self._connection.queue(trial)
        self._connection.flush()

    def look(self, passed_s: float) -> float:
        """So much time has passed; what the trial has had of a processor meanwhile."""
        self._connection.flush()
        self.awake_s += passed_s
        if not self._is_up:
            return 0.0
        before_s = self.cpu_s
        with contextlib.suppress(OSError):  # it has died
            self.cpu_s = cpu_s_of(self.pid) - self._had_s
        return self.cpu_s - before_s

    def answer(self) -> Tried | None:
        """Of its trial, if it has come: that is over then. Raises EOFError where the process has died."""
        try:
            messages = self._connection.read() if self._connection.wait(0) else []
        except msgspec.DecodeError as error:
            raise EOFError from error
        if messages and not self._is_up:
            self._is_up = True
            with contextlib.suppress(OSError):
                self._began_bytes = resident_bytes(self.pid)
            if self.trial is not None:
                self._pass_on(self.trial)
        answer = next((message for message in messages if isinstance(message, Tried)), None)
        if answer is not None:
            self.trial = None
        return answer

    def has_grown(self) -> bool:
        """Between two trials: whether it keeps so much memory that a new process is cheaper."""
        try:
            return resident_bytes(self.pid) > self._began_bytes + _MOST_KEPT_BYTES
        except OSError:
            return True

    def is_paused_at(self, awake_s: float) -> bool:
        """Whether it will still be paused when its trial has lasted so long."""
        return self._resumes_at_s is not None and self._resumes_at_s > awake_s

    def step_back(self) -> None:
        """From now on it has what others leave of the processors; that cannot be taken back. It begins with a pause
        for what its trial has had until now."""
        if not self.has_stepped_back:
            self.has_stepped_back = True
            step_back(self.pid)
            if self.cpu_s:
                self._pause(self.cpu_s)

    def give_way(self, used_s: float, passed_s: float, always: bool) -> None:
        """After `look`, for one that has stepped back: pauses it where others compute, or always, and lets it go on
        later."""
        self._since_s += passed_s
        self._used_s += used_s
        if self._resumes_at_s is not None:
            if self.awake_s >= self._resumes_at_s:
                self._resumes_at_s, self._since_s, self._used_s = None, 0.0, 0.0
                os.kill(self.pid, signal.SIGCONT)
        elif self._is_up and self._since_s >= _SHORTEST_LOOK_S:
            if always or self._used_s < self._since_s / 2:
                self._pause(self._used_s)
            self._since_s = self._used_s = 0.0

    def _pause(self, used_s: float) -> None:
        self._resumes_at_s = self.awake_s + min(used_s / _SHARE_BESIDE_OTHERS, _LONGEST_PAUSE_S)
        os.kill(self.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Whatever it is doing."""
        self._connection.close()
        os.kill(self.pid, signal.SIGKILL)  # nobody else can have its number before it is reaped

    def is_reaped(self) -> bool:
        """After `end`: whether it is gone, with its memory. Does not wait."""
        return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid


def _live(compiler: Compiler, ours: socket.socket, inherited: list[int], parent: int) -> NoReturn:
    """The whole life of the fork. Native code that runs out of memory ends it by a signal."""
    try:
        # Whom the kernel hangs up on for a paused process that has lost its parent is the process's group.
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for fd in inherited:
            os.close(fd)
        # Where the machine runs out of memory, this one is the one to go.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(_GREATEST_OOM_SCORE)
        if os.getppid() == parent:
            _try_all(compiler, Connection(ours, ToGrammar))
    except (EOFError, ConnectionError, MemoryError):
        pass
    except Exception:
        logger.exception("a trial broke")
    finally:
        os._exit(1)


def _try_all(compiler: Compiler, connection: Connection[ToGrammar]) -> None:
    compiler.warm_up()  # its memory is its own from here on
    connection.send(Started())
    while True:
        if connection.wait(_LONGEST_WAIT_S):
            for message in connection.read():
                assert isinstance(message, Try)
                limit_growth(message.limits.memory_bytes)
                connection.send(Tried(message.number, error=_error(compiler, message)))


def _error(compiler: Compiler, trial: Try) -> str:
    try:
        compiler.try_out(trial.asked)
    except UnusableGrammar as error:
        return str(error)
    return ""
