"""TritonServer: one running Triton server with the `octavo` backend, from its start to the last trace of it.

Knows processes, ports, folders and the server's log; nothing of models or requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from octavo_triton.runtime_folder import BACKEND, RepositoryError, assemble_backends, assemble_repositories
from octavo_triton.server_log import failure_in, progress_in

SYSTEM_SERVER = Path("/opt/tritonserver")
POLL_S = 0.1
EXIT_TIMEOUT_S = 30
METRICS_TIMEOUT_S = 5
NO_METRICS = ("--allow-metrics=false", "--allow-metrics=0")
_SHM = Path("/dev/shm")


class LaunchError(Exception):
    """The server could not be started; the text is one line that says why and what to do."""


class LaunchStopped(Exception):
    """Somebody asked to stop while the server was starting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where a server finds its models and itself, and where it listens.

    `backend_name` is a second name of our backend: models that say `octavo` are then served under it. `load_models`
    switches to explicit model control with these models loaded at the start. `extra` goes to tritonserver as it is.
    `environment` is added to the server's; times are in seconds.
    """

    model_repository: Path | tuple[Path, ...]
    backend_name: str = BACKEND
    address: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    server_dir: Path = Path(".server")
    load_models: tuple[str, ...] | None = None
    start_timeout_s: float = 1800.0
    environment: dict[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()

    @property
    def model_repositories(self) -> tuple[Path, ...]:
        """All of them, also when there is one."""
        one_or_more = self.model_repository
        return (one_or_more,) if isinstance(one_or_more, Path) else one_or_more


class TritonServer:
    """A context manager around one server process; leaving it, however, leaves no process, port or file behind.

    `report` is called with lines that tell a person how the start goes on.
    """

    def __init__(self, options: ServerOptions, report: Callable[[str], None] = lambda line: None) -> None:
        self.options = options
        self.log_path = (options.server_dir / "logs" / f"tritonserver-{options.http_port}.log").resolve()
        self.stop_requested = threading.Event()
        self._report = report
        self._process: subprocess.Popen[bytes] | None = None
        self._runtime_folder: Path | None = None

    @property
    def http_url(self) -> str:
        """Base of all HTTP endpoints."""
        return f"http://{_url_host(self.options.address)}:{self.options.http_port}"

    @property
    def grpc_address(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{_url_host(self.options.address)}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """The metrics page."""
        return f"http://{_url_host(self.options.address)}:{self.options.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """Process id of the server, which is its process group's too."""
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    def __enter__(self) -> TritonServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the server and returns when it is ready. Raises LaunchError, or LaunchStopped when told to stop."""
        for name, port in self._ports().items():
            check_port(self.options.address, port, name)
        root = find_server(self.options.server_dir)
        self._runtime_folder = Path(tempfile.mkdtemp(prefix="octavo-server-"))
        name = self.options.backend_name
        try:
            backends = assemble_backends(root, self._runtime_folder, name)
            repositories = assemble_repositories(self.options.model_repositories, self._runtime_folder, name)
        except RepositoryError as error:
            raise LaunchError(str(error)) from None
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            # A session of its own: the terminal's Ctrl-C reaches only us, and we end the server in order.
            self._process = subprocess.Popen(
                self._command(root, backends, repositories),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._report(f"starting the Triton server (log: {self.log_path})")
        self._wait_until_ready()

    def stop(self) -> None:
        """Ends the server, gently first. May be called at any time, also twice."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                self._process.terminate()
                self._process.wait(EXIT_TIMEOUT_S + 15)
            # Whoever is left in the server's process group: itself if it hung, stubs that it left behind.
            self.kill()
            self._process.wait()
            for leftover in _SHM.glob(f"{self._shm_prefix()}*"):
                leftover.unlink(missing_ok=True)
        if self._runtime_folder is not None:
            shutil.rmtree(self._runtime_folder, ignore_errors=True)

    def kill(self) -> None:
        """Ends the server and its stubs at once; `stop` still has to clean up."""
        if self._process is not None:
            # The process group may be gone already.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> int | None:
        """Waits until the server ends by itself (its exit code) or somebody sets `stop_requested` (None)."""
        assert self._process is not None
        while not self.stop_requested.wait(POLL_S):
            code = self._process.poll()
            if code is not None:
                return code
        return None

    def models(self) -> list[str]:
        """Names of the models that can be asked now."""
        request = urllib.request.Request(f"{self.http_url}/v2/repository/index", data=b"{}", method="POST")
        with urllib.request.urlopen(request, timeout=10) as response:
            index = json.load(response)
        return sorted({entry["name"] for entry in index if entry.get("state") == "READY"})

    def models_of_ours(self) -> list[str]:
        """Those of `models` whose backend is ours, under either of its names."""
        names = {BACKEND, self.options.backend_name}
        return [model for model in self.models() if self._backend_of(model) in names]

    def _backend_of(self, model: str) -> str:
        with urllib.request.urlopen(f"{self.http_url}/v2/models/{model}/config", timeout=10) as response:
            return str(json.load(response)["backend"])

    def _ports(self) -> dict[str, int]:
        options = self.options
        return {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}

    def _shm_prefix(self) -> str:
        return f"octavo_{os.getpid()}_{self.options.http_port}_"

    def _command(self, root: Path, backends: Path, repositories: list[Path]) -> list[str]:
        options = self.options
        command = [
            str(root / "bin" / "tritonserver"),
            *(f"--model-repository={repository}" for repository in repositories),
            f"--backend-directory={backends}",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix()}",
        ]
        for name, port in self._ports().items():
            command += [f"--{name}-address={options.address}", f"--{name}-port={port}"]
        if options.load_models is not None:
            command += ["--model-control-mode=explicit", *(f"--load-model={name}" for name in options.load_models)]
        return command + list(options.extra)

    def _environment(self) -> dict[str, str]:
        """The stub's interpreter takes its packages from the first python3 on PATH and ignores PYTHONPATH."""
        environment = os.environ | self.options.environment
        own = (self.options.server_dir / "env" / "bin").resolve()
        if own.is_dir():
            environment["PATH"] = f"{own}{os.pathsep}{environment.get('PATH', os.defpath)}"
        engine_python = environment.setdefault("OCTAVO_ENGINE_PYTHON", sys.executable)
        if "OCTAVO_DEFAULT_MODEL" not in environment:
            environment |= find_default_model(engine_python)
        return environment

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        with self.log_path.open(encoding="utf-8", errors="replace") as log:
            for _ in range(int(self.options.start_timeout_s / POLL_S)):
                for line in log:
                    self._report_progress(line)
                if self._process.poll() is not None:
                    raise LaunchError(f"{failure_in(self.log_path)} (log: {self.log_path})")
                if _answers(f"{self.http_url}/v2/health/ready"):
                    self._wait_for_metrics()
                    return
                if self.stop_requested.wait(POLL_S):
                    raise LaunchStopped
        raise LaunchError(f"not ready after {self.options.start_timeout_s:.0f} s (log: {self.log_path})")

    def _report_progress(self, line: str) -> None:
        said = progress_in(line)
        if said is not None:
            self._report(said)

    def _wait_for_metrics(self) -> None:
        """The server says ready while its metrics port, the last to open, is still shut.

        Not for ever: `extra` may have chosen another port.
        """
        if any(option.lower() in NO_METRICS for option in self.options.extra):
            return
        for _ in range(int(METRICS_TIMEOUT_S / POLL_S)):
            if _answers(self.metrics_url):
                return
            if self.stop_requested.wait(POLL_S):
                raise LaunchStopped
        self._report(f"no metrics on {self.metrics_url}; the server is ready all the same")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def find_server(server_dir: Path) -> Path:
    """The folder that holds bin/tritonserver: the system's, else the one that install_server.sh made."""
    for root in (SYSTEM_SERVER, server_dir.resolve() / "pytriton" / "tritonserver"):
        if (root / "bin" / "tritonserver").exists():
            return root
    raise LaunchError(f"no Triton server in {SYSTEM_SERVER} or {server_dir}: `make serve` installs one")


def find_default_model(engine_python: str) -> dict[str, str]:
    """The variable that names the embedded model: it lies beside the engine, where the server's own Python cannot look.

    Empty when there is none: a named model needs no default, and any other will say at its load what is missing.
    """
    code = "from octavo.checkpoint import default_model; print(default_model())"
    try:
        done = subprocess.run([engine_python, "-P", "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"OCTAVO_DEFAULT_MODEL": done.stdout.strip()}


def check_port(address: str, port: int, name: str) -> None:
    """Raises LaunchError when nothing can listen there, naming the option that chooses another port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server does: a port whose old connections are still timing out is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise LaunchError(
                f"port {port} on {address} cannot be used ({error.strerror}): choose another with --{name}-port, "
                f"or {name.upper()}_PORT with make"
            ) from None


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _url_host(address: str) -> str:
    """How to reach an address that was listened on: a wildcard is reached through the loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"[{host}]" if ":" in host else host
