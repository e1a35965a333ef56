"""KServeServer: one running `python -m octavo_kserve` in a process of its own, from its start to its last trace.

In a process of its own also because the SDK and `tritonclient.grpc` cannot be imported into the same one.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from octavo.testing import make_fake_model
from octavo_triton.launch import free_port

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
# A step takes some milliseconds, so that a test can act in the middle of a stream.
PACED = "octavo.testing:create_paced_executor"


class KServeServer:
    """A context manager; leaving it, however, leaves no process behind. `arguments` go to the command line."""

    def __init__(self, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.http_port, self.grpc_port = free_port(), free_port()
        self.log_path = log
        self._arguments = arguments
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base of all HTTP endpoints."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's process."""
        assert self._process is not None, "the server has not been started"
        return self._process

    def __enter__(self) -> KServeServer:
        self.start()
        try:
            self.wait_until(lambda: self.status("/v2/health/ready") == 200)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the process and returns at once."""
        ports = ["--host", "127.0.0.1", f"--http_port={self.http_port}", f"--grpc_port={self.grpc_port}"]
        command = [sys.executable, "-m", "octavo_kserve", *ports, *self._arguments]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> int:
        """Ends the server, gently first; its exit code. May be called twice."""
        process = self.process
        # Ctrl-C: no need to wait for a router.
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def wait_until(self, condition: Any) -> None:
        """Waits for something that the server will do."""
        for _ in range(int(START_TIMEOUT_S / POLL_S)):
            assert self.process.poll() is None, self.log()
            if condition():
                return
            time.sleep(POLL_S)
        raise AssertionError(self.log())

    def log(self) -> str:
        """What it has logged."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def status(self, path: str) -> int:
        """The status of a GET; 0 while nobody listens."""
        try:
            return self.get(path)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """The status and the body."""
        return self._send(urllib.request.Request(self.url + path, headers=headers or {}))

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Posts JSON; the status and what the answer's JSON holds."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = {"Content-Type": "application/json"} | (headers or {})
        status, text = self._send(urllib.request.Request(self.url + path, data, head, method="POST"))
        return status, json.loads(text) if text.startswith(("{", "[")) else text

    def events(self, path: str, body: Any) -> Iterator[Any]:
        """Posts JSON; the server-sent events of the answer, as they come. Closing it leaves the server alone."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            for line in response:
                if line.startswith(b"data: "):
                    text = line[6:].strip().decode()
                    yield text if text == "[DONE]" else json.loads(text)
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """One value of the metrics page."""
        shown = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        for line in self.get("/metrics")[1].splitlines():
            head, _, value = line.rpartition(" ")
            if head == (f"{name}{{{shown}}}" if labels else name):
                return float(value)
        raise AssertionError(f"no {name} {labels}")

    @staticmethod
    def _send(request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def fake_arguments(folder: Path, name: str = "fake", **engine: Any) -> list[str]:
    """The command line for a model over the fake executor, whose weights are made in `folder`."""
    model = make_fake_model(folder / name, max_position_embeddings=50_000)
    settings = {"model_name": name, "model_dir": model, "executor": PACED} | engine
    return [f"--{key}={value}" for key, value in settings.items()]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text() if Path(f"/proc/{pid}").exists() else ""
    by_threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return sorted({int(child) for text in [listed, *by_threads] for child in text.split()})
