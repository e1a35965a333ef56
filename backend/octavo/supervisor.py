"""Starting, telling apart, stopping and killing engine processes, and how often one may be started anew.

Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ModelLoadError
from octavo.wire import Connection, FromEngine, Shutdown

PYTHON_VARIABLE = "OCTAVO_ENGINE_PYTHON"
# What a host sets for its own interpreter misleads another one.
_HOST_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
_MODULE = "octavo.engine_process"
_STDERR = 2
_DIAGNOSIS_TIMEOUT_S = 60.0
_POLL_S = 0.05


def find_python(engine_python: str | None) -> str:
    """The interpreter for the engine process: the setting, then OCTAVO_ENGINE_PYTHON, then this one.

    Raises ModelLoadError when this process has no interpreter of its own, as in a host that embeds Python.
    """
    named = engine_python or os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    if not Path(sys.executable or "").name.startswith(("python", "pypy")):
        raise ModelLoadError(
            f"sys.executable is {sys.executable!r}, which is no Python interpreter: set engine_python, or the "
            f"environment variable {PYTHON_VARIABLE}, to the interpreter that has octavo installed"
        )
    return sys.executable


class EngineProcess:
    """One engine process and the front's end of the socket to it. The thread that creates it must outlive it."""

    def __init__(self, python: str) -> None:
        """Starts the process. Raises ModelLoadError when the interpreter cannot be started."""
        self._python = python
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # -P: the working directory may hold folders named like packages.
                self._process = subprocess.Popen(
                    [python, "-P", "-m", _MODULE, "--fd", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=_STDERR,
                    env=_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise ModelLoadError(f"engine_python: {python!r} cannot be started ({error.strerror})") from None
        self.connection: Connection[FromEngine] = Connection(ours, FromEngine)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stop(self, grace_s: float) -> None:
        """Tells it to end, kills it if it has not after `grace_s`, and reaps it."""
        deadline = time.monotonic() + grace_s
        self.connection.queue(Shutdown())
        with contextlib.suppress(EOFError, msgspec.DecodeError):
            while time.monotonic() < deadline:
                self.connection.flush()
                # It may be waiting for room to send what nobody wants any more.
                if self.connection.wait(_POLL_S):
                    self.connection.read()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(deadline - time.monotonic(), _POLL_S))
        self.kill()

    def kill(self) -> None:
        """Ends it at once if it still lives, reaps it and closes the connection."""
        self._process.kill()
        self._process.wait()
        self.connection.close()

    def cause_of_death(self) -> str:
        """How it ended, in words. It has closed its end of the connection."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.returncode
        if status is None:
            return "closed its connection"
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"

    def why_it_did_not_start(self) -> str:
        """Like `cause_of_death`, for one that ended before its first message: asks its interpreter what is missing."""
        command = [self._python, "-P", "-c", f"import {_MODULE}"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=_environment(),
                timeout=_DIAGNOSIS_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return self.cause_of_death()
        if not done.returncode:
            return self.cause_of_death()
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return (
            f"could not be run by {self._python} ({last_line}): set engine_python, or the environment variable "
            f"{PYTHON_VARIABLE}, to an interpreter that has octavo installed; it {self.cause_of_death()}"
        )


class RestartLimit:
    """Allows `max_restarts` within any `window_s` seconds."""

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._restarts: deque[float] = deque()

    def allow(self, now: float) -> bool:
        """Whether one more restart is within the limit at time `now` (seconds); if so it counts."""
        while self._restarts and now - self._restarts[0] >= self._window_s:
            self._restarts.popleft()
        if len(self._restarts) >= self._max_restarts:
            return False
        self._restarts.append(now)
        return True

    def forgive(self) -> None:
        """What made it die is gone: the restarts so far no longer count."""
        self._restarts.clear()


def _environment() -> dict[str, Any]:
    return {name: value for name, value in os.environ.items() if name not in _HOST_VARIABLES}
