"""`python -m octavo_triton.server`: starts a Triton server with the `octavo` backend and stays until told to stop.

Reads the command line and talks to the terminal; everything else is `launch.TritonServer`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from octavo_triton.launch import LaunchError, LaunchStopped, ServerOptions, TritonServer
from octavo_triton.runtime_folder import BACKEND

PARENT_POLL_S = 0.2


def parse_options(arguments: Sequence[str]) -> tuple[ServerOptions, bool]:
    """The command line, as options, and whether to stop with the parent. Exits with a usage line for a bad one."""
    parser = argparse.ArgumentParser(prog="octavo_triton.server", description=__doc__)
    parser.add_argument(
        "--model-repository",
        type=Path,
        action="append",
        required=True,
        help="folder with one folder a model (repeatable)",
    )
    parser.add_argument(
        "--backend-name", default=BACKEND, help="serve our models under this backend's name, as in vllm"
    )
    parser.add_argument("--address", default="127.0.0.1", help="where to listen; 0.0.0.0 for all interfaces")
    parser.add_argument("--http-port", type=_port, default=8000)
    parser.add_argument("--grpc-port", type=_port, default=8001)
    parser.add_argument("--metrics-port", type=_port, default=8002)
    parser.add_argument("--server-dir", type=Path, default=Path(".server"), help="what install_server.sh made; logs")
    parser.add_argument(
        "--load-model", action="append", metavar="NAME", help="explicit model control: load only this one (repeatable)"
    )
    parser.add_argument("--start-timeout-s", type=float, default=1800.0)
    parser.add_argument("--stop-with-parent", action="store_true", help="stop when make, or a script, is interrupted")
    parser.add_argument("extra", nargs="*", help="after --: options for tritonserver itself")
    parsed = parser.parse_args(arguments)
    options = ServerOptions(
        model_repository=tuple(parsed.model_repository),
        backend_name=parsed.backend_name,
        address=parsed.address,
        http_port=parsed.http_port,
        grpc_port=parsed.grpc_port,
        metrics_port=parsed.metrics_port,
        server_dir=parsed.server_dir,
        load_models=None if parsed.load_model is None else tuple(parsed.load_model),
        start_timeout_s=parsed.start_timeout_s,
        extra=tuple(parsed.extra),
    )
    return options, parsed.stop_with_parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a server until SIGINT or SIGTERM. Returns the exit code: 0 after a stop, 1 when the server failed."""
    options, stop_with_parent = parse_options(sys.argv[1:] if arguments is None else arguments)
    server = TritonServer(options, report=_say)

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        if server.stop_requested.is_set():
            server.kill()
        server.stop_requested.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ask_to_stop)
    if stop_with_parent:
        watch = threading.Thread(target=stop_with, args=(os.getppid(), server.stop_requested), daemon=True)
        watch.start()
    try:
        with server:
            _say(welcome(server))
            code = server.wait()
            if code is not None:
                raise LaunchError(f"the server ended with exit code {code} (log: {server.log_path})")
            _say("stopping the server (requests in flight may finish; Ctrl-C again to end them)")
    except LaunchStopped:
        pass
    except LaunchError as error:
        _say(f"error: {error}")
        return 1
    _say("the server has stopped")
    return 0


def stop_with(parent: int, stop_requested: threading.Event) -> None:
    """Sets `stop_requested` when the process `parent` ends, or has been interrupted and waits for its children.

    make passes SIGTERM on to its recipes but not SIGINT: it relies on the terminal to send that one to all. A SIGINT
    for make alone leaves it waiting in its signal handler, which shows as a SIGINT that stays blocked.
    """
    interrupted = 0
    while interrupted < 5 and not stop_requested.wait(PARENT_POLL_S):
        if os.getppid() != parent:
            break
        interrupted = interrupted + 1 if _blocks_interrupts(parent) else 0
    stop_requested.set()


def _blocks_interrupts(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    blocked = next((line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:")), "0")
    return bool(int(blocked, 16) >> (signal.SIGINT - 1) & 1)


def welcome(server: TritonServer) -> str:
    """What a running server tells a person: where it listens, what it can be asked, and how."""
    models = server.models()
    sampling = json.dumps({"max_tokens": 32, "temperature": 0})
    request = json.dumps({"text_input": "Once upon a time", "stream": True, "sampling_parameters": sampling})
    lines = [f"ready: {', '.join(models) or 'no model loaded'}", f"  HTTP     {server.http_url}"]
    lines += [f"  gRPC     {server.grpc_address}", f"  metrics  {server.metrics_url}", f"  log      {server.log_path}"]
    for model in server.models_of_ours()[:1]:
        lines.append(f"try:\n  curl -N {server.http_url}/v2/models/{model}/generate_stream -d '{request}'")
    return "\n".join([*lines, "Ctrl-C stops it, a second one at once."])


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port: 1 to 65535")
    return port


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
