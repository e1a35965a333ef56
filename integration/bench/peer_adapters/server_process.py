"""A server that is started, waited for until it is ready, and stopped, on the standard library alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 400.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05


class ServerProcess:
    """A context manager. `command` has "{port}" where the port belongs; `/health` says whether it is ready.

    Without `environment` it gets that of this process, and ends when this process's group is ended.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._log = log
        self._leads_group = environment is not None
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [part.replace("{port}", str(self.port)) for part in command],
                env=None if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=self._leads_group,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Base of all endpoints."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ServerProcess:
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends it and whatever it has started; gently first."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            if self._leads_group:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended: {self._log.read_text(errors='replace')[-800:]}")
            if time.monotonic() > end:
                raise RuntimeError(f"the server was not ready within {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def free_port() -> int:
    """One on loopback that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
