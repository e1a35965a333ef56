"""The launcher without the real server: options, ports, folders, and what it says about a log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from octavo_triton import launch
from octavo_triton import server as server_module
from octavo_triton.launch import LaunchError, ServerOptions, TritonServer, failure_in, free_port
from octavo_triton.server import main, parse_options

LOAD_FAILURE = (
    "E1121 04:55:31.803363 8035 model_lifecycle.cc:642] \"failed to load 'f1' version 1: Internal: "
    'TritonModelException: no such model: /x\\n\\nAt:\\n  /somewhere/model.py(19): initialize\\n"'
)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerOptions:
    """Options for a server whose program is a script that each test writes."""
    monkeypatch.setattr(launch, "SYSTEM_SERVER", tmp_path / "nowhere")
    (tmp_path / "models").mkdir()
    return ServerOptions(
        model_repository=tmp_path / "models",
        server_dir=tmp_path / "server",
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        environment={"OCTAVO_DEFAULT_MODEL": "/a.gguf"},
    )


def write_server(options: ServerOptions, script: str) -> None:
    root = options.server_dir / "pytriton" / "tritonserver"
    (root / "bin").mkdir(parents=True)
    (root / "backends" / "python").mkdir(parents=True)
    program = root / "bin" / "tritonserver"
    program.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    program.chmod(0o755)


READY_SERVER = """
import http.server, os, signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
options = dict(argument.split("=", 1) for argument in sys.argv[1:])
prefix = options["--backend-config"].split("=", 1)[1]
open("/dev/shm/" + prefix + "left", "w").close()
print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.set()
        self.send_response(200)
        self.end_headers()
    do_POST = do_GET
def serve(port):
    http.server.ThreadingHTTPServer(("127.0.0.1", int(options[port])), Handler).serve_forever()
asked = threading.Event()
def open_late():
    asked.wait()
    time.sleep(0.3)
    serve("--metrics-port")
if "--allow-metrics" not in options:
    threading.Thread(target=open_late, daemon=True).start()
serve("--http-port")
"""


def test_a_port_in_use_is_named_with_the_option_that_changes_it(options: ServerOptions) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", options.grpc_port))
        other.listen()
        with pytest.raises(LaunchError, match=rf"port {options.grpc_port} on 127.0.0.1 .*--grpc-port, or GRPC_PORT"):
            TritonServer(options).start()


def test_without_a_server_it_says_how_to_get_one(options: ServerOptions) -> None:
    with pytest.raises(LaunchError, match=r"no Triton server .*make serve"):
        TritonServer(options).start()


def test_a_missing_model_repository_is_named(options: ServerOptions) -> None:
    options.model_repository.rmdir()
    write_server(options, "")
    with pytest.raises(LaunchError, match=r"no such model repository: .*/models"), TritonServer(options):
        pass


def test_the_systems_server_is_preferred(options: ServerOptions, tmp_path: Path) -> None:
    write_server(options, "")
    system = tmp_path / "nowhere"
    assert launch.find_server(options.server_dir) == options.server_dir / "pytriton" / "tritonserver"
    (system / "bin").mkdir(parents=True)
    (system / "bin" / "tritonserver").touch()
    assert launch.find_server(options.server_dir) == system


def is_alive(process: int) -> bool:
    """Whether it runs; an orphan that has ended may stay a zombie for a while, which has no command line."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def test_leaving_ends_every_process_and_removes_every_file(options: ServerOptions) -> None:
    write_server(options, READY_SERVER)
    with TritonServer(options) as server:
        child = int(server.log_path.read_text(encoding="utf-8").split("\n")[0])
        (left,) = Path("/dev/shm").glob(f"octavo_{os.getpid()}_*left")
        launched = server.pid
    assert not left.exists()
    end = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < end, "a child of the server is left"
    with pytest.raises(ProcessLookupError):
        os.kill(launched, 0)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", options.http_port)) != 0


def test_it_is_ready_only_when_the_metrics_port_which_opens_last_answers(options: ServerOptions) -> None:
    write_server(options, READY_SERVER)
    with TritonServer(options) as server, urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        assert page.status == 200


def test_a_server_whose_metrics_are_elsewhere_is_ready_all_the_same(
    options: ServerOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "METRICS_TIMEOUT_S", 0.2)
    write_server(options, READY_SERVER)
    said: list[str] = []
    with TritonServer(replace(options, extra=(f"--metrics-port={free_port()}",)), said.append) as server:
        assert said[-1] == f"no metrics on {server.metrics_url}; the server is ready all the same"


def test_a_server_that_was_told_to_show_no_metrics_is_ready_without(options: ServerOptions) -> None:
    write_server(options, READY_SERVER)
    without = replace(options, extra=("--allow-metrics=false",), start_timeout_s=20)
    with TritonServer(without) as server, pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(server.metrics_url, timeout=10)


def test_an_error_inside_the_block_stops_the_server_too(options: ServerOptions) -> None:
    write_server(options, READY_SERVER)
    server = TritonServer(options)

    def fail_inside() -> None:
        with server:
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_failed_load_is_told_in_one_line_with_the_log(options: ServerOptions) -> None:
    write_server(options, f"print({LOAD_FAILURE!r}, flush=True)\nraise SystemExit(1)")
    with pytest.raises(LaunchError) as caught, TritonServer(options):
        pass
    text = str(caught.value)
    assert text.startswith("failed to load 'f1' version 1: no such model: /x (log: ")
    assert "initialize" not in text


def test_load_progress_is_shown_while_waiting(options: ServerOptions) -> None:
    write_server(options, "print('I1121 1 model.py:9] \"[octavo] loading: 40 %\"', flush=True)\n" + READY_SERVER)
    seen: list[str] = []
    with TritonServer(options, report=seen.append):
        pass
    assert "loading: 40 %" in seen


def test_a_server_that_never_gets_ready_is_given_up(options: ServerOptions, tmp_path: Path) -> None:
    write_server(options, "import time\ntime.sleep(1000)")
    impatient = ServerOptions(
        model_repository=options.model_repository,
        server_dir=options.server_dir,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        environment=options.environment,
        start_timeout_s=0.2,
    )
    with pytest.raises(LaunchError, match="not ready after"), TritonServer(impatient):
        pass


def test_a_request_to_stop_during_the_start_is_obeyed(options: ServerOptions) -> None:
    write_server(options, "import time\ntime.sleep(1000)")
    server = TritonServer(options)
    server.stop_requested.set()
    with pytest.raises(launch.LaunchStopped), server:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_a_log_without_a_failed_load_gives_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\nerror: creating server: no\n\n", encoding="utf-8")
    assert failure_in(log) == "the server ended: error: creating server: no"
    log.write_text("", encoding="utf-8")
    assert failure_in(log) == "the server ended without a word"


def test_the_same_failure_logged_twice_is_told_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"{LOAD_FAILURE}\n{LOAD_FAILURE}\n", encoding="utf-8")
    assert failure_in(log) == "failed to load 'f1' version 1: no such model: /x"


def test_a_backend_that_is_not_there_is_told_with_the_way_to_its_name(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = "Invalid argument: unable to find backend library for backend 'vllm', try specifying runtime on the model"
    log.write_text(f"E1121 1 model_lifecycle.cc:642] \"failed to load 'm' version 1: {said}\"\n", encoding="utf-8")
    assert failure_in(log).startswith("failed to load 'm' version 1: no backend 'vllm': ")
    assert "BACKEND_NAME=vllm" in failure_in(log)


def test_the_command_line_becomes_options() -> None:
    options, stop_with_parent = parse_options(
        [
            "--model-repository",
            "m",
            "--model-repository=n",
            "--backend-name=vllm",
            "--http-port",
            "9",
            "--load-model",
            "a",
            "--load-model",
            "b",
            "--",
            "--log-verbose=1",
        ]
    )
    assert (options.model_repositories, options.backend_name) == ((Path("m"), Path("n")), "vllm")
    assert (options.http_port, options.grpc_port) == (9, 8001)
    assert (options.load_models, options.extra) == (("a", "b"), ("--log-verbose=1",))
    assert not stop_with_parent


def test_a_port_out_of_range_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--model-repository", "m", "--http-port", "70000"])
    assert "70000 is no port" in capsys.readouterr().err


def test_the_launcher_tells_a_failure_in_one_line_and_exits_with_1(
    options: ServerOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main(["--model-repository", str(options.model_repository), "--server-dir", str(options.server_dir)]) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    output = capsys.readouterr().out
    assert output.startswith("error: ")
    assert output.count("\n") == 1


def test_it_stops_with_a_parent_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "PARENT_POLL_S", 0.001)
    stop_requested = threading.Event()
    server_module.stop_with(os.getppid() + 1, stop_requested)
    assert stop_requested.is_set()


def test_it_stops_with_a_parent_that_was_interrupted_and_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "PARENT_POLL_S", 0.001)
    block = "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])"
    code = f"{block}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        monkeypatch.setattr(os, "getppid", lambda: parent.pid)
        stop_requested = threading.Event()
        server_module.stop_with(parent.pid, stop_requested)
        assert stop_requested.is_set()
        parent.kill()


def test_the_environment_of_the_server_names_the_engines_interpreter(options: ServerOptions) -> None:
    (options.server_dir / "env" / "bin").mkdir(parents=True)
    environment = TritonServer(options)._environment()
    assert environment["PATH"].startswith(str(options.server_dir / "env" / "bin"))
    assert environment["OCTAVO_ENGINE_PYTHON"] == os.environ.get("OCTAVO_ENGINE_PYTHON", sys.executable)
