"""From the first probe of a server to its last: loading, failing, draining, dying."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from kserve_server import KServeServer, children, fake_arguments

pytestmark = pytest.mark.slow

READINESS = ("/health", "/v2/health/ready", "/v2/models/fake/ready", "/v1/models/fake")
STREAM = "/v2/models/fake/generate_stream"
OPENAI = "/v1/completions"


def stream_in_background(server: KServeServer, path: str, body: dict[str, Any]) -> tuple[threading.Thread, list[Any]]:
    """A client that reads a stream to its end; returns when the first event is there."""
    events: list[Any] = []
    begun = threading.Event()

    def read() -> None:
        for event in server.events(path, body):
            events.append(event)
            begun.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert begun.wait(60)
    return thread, events


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_drain_says_not_ready_takes_requests_for_a_while_and_ends_streams_whole(tmp_path: Path) -> None:
    arguments = [*fake_arguments(tmp_path), "--drain-delay-s=1"]
    with KServeServer(tmp_path / "log", *arguments) as server:
        engines = children(server.process.pid)
        ask = {"text_input": "x", "max_tokens": 500, "stream": True, "return_finish_reason": True}
        native, native_events = stream_in_background(server, STREAM, ask)
        body = {"model": "fake", "prompt": "x", "max_tokens": 500, "stream": True}
        openai, openai_events = stream_in_background(server, OPENAI, body)
        server.process.send_signal(signal.SIGTERM)
        server.wait_until(lambda: server.status("/v2/health/ready") == 503)
        assert [server.status(path) for path in READINESS] == [503] * len(READINESS)
        assert server.status("/v2/health/live") == 200
        assert server.post("/v2/models/fake/generate", {"text_input": "x", "max_tokens": 2})[0] == 200
        assert server.process.wait(60) == 0, server.log()
        for thread in (native, openai):
            thread.join(30)
        assert native_events[-1]["finish_reason"] == "length"
        assert openai_events[-1] == "[DONE]"
        assert openai_events[-2]["choices"][0]["finish_reason"] == "length"
        assert engines and all(map(is_gone, engines))


def test_streams_that_outlast_the_drain_end_with_an_event_that_says_so(tmp_path: Path) -> None:
    arguments = [*fake_arguments(tmp_path), "--drain_delay_s=0", "--drain_timeout_s=0.2"]
    with KServeServer(tmp_path / "log", *arguments) as server:
        ask = {"text_input": "x", "max_tokens": 40_000, "stream": True}
        native, native_events = stream_in_background(server, STREAM, ask)
        body = {"model": "fake", "prompt": "x", "max_tokens": 40_000, "stream": True}
        openai, openai_events = stream_in_background(server, OPENAI, body)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, server.log()
        for thread in (native, openai):
            thread.join(30)
        assert "shutting down" in native_events[-1]["error"]
        assert openai_events[-1] == "[DONE]"
        assert "shutting down" in openai_events[-2]["error"]["message"]


def test_an_engine_that_dies_is_not_ready_but_alive_and_comes_back(tmp_path: Path) -> None:
    with KServeServer(tmp_path / "log", *fake_arguments(tmp_path)) as server:
        for pid in children(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        server.wait_until(lambda: server.status("/v2/health/ready") == 503)
        assert server.status("/v2/health/live") == 200
        # Taken now, answered when the engine is back.
        assert server.post("/v2/models/fake/generate", {"text_input": "x", "max_tokens": 2})[0] == 200
        server.wait_until(lambda: server.status("/v2/health/ready") == 200)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_streams_survive_an_engine_that(tmp_path: Path, sig: signal.Signals) -> None:
    """A hang ends when a step has taken too long; until then, and not for longer, requests are silent."""
    with KServeServer(tmp_path / "log", *fake_arguments(tmp_path, step_timeout_s=1)) as server:
        ask = {"text_input": "x", "max_tokens": 250, "seed": 7, "exclude_input_in_output": True}
        whole = server.post("/v2/models/fake/generate", ask)[1]["text_output"]
        native, native_events = stream_in_background(server, STREAM, ask | {"stream": True})
        body = {"model": "fake", "prompt": "x", "max_tokens": 250, "seed": 7, "stream": True}
        openai, openai_events = stream_in_background(server, OPENAI, body)
        for pid in children(server.process.pid):
            os.kill(pid, sig)
        for thread in (native, openai):
            thread.join(30)
        assert "".join(event["text_output"] for event in native_events) == whole
        assert openai_events.pop() == "[DONE]"
        assert "".join(event["choices"][0]["text"] for event in openai_events) == whole
        assert server.metric("octavo:engine_restarts_total", model_name="fake") == 1
        server.wait_until(lambda: server.status("/v2/health/ready") == server.status("/v2/health/live") == 200)


def test_an_engine_that_is_dead_for_good_ends_the_server(tmp_path: Path) -> None:
    with KServeServer(tmp_path / "log", *fake_arguments(tmp_path, max_restarts=0)) as server:
        for pid in children(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        assert server.process.wait(60) == 1
        assert "after 0 restarts" in server.log()


def test_a_model_that_fails_to_load_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    server = KServeServer(tmp_path / "log", *fake_arguments(tmp_path, executor="octavo.testing:nothing"))
    server.start()
    try:
        assert server.process.wait(60) == 1
        assert "nothing" in server.log()
    finally:
        server.stop()


def test_a_model_that_is_missing_ends_the_server_at_once(tmp_path: Path) -> None:
    server = KServeServer(tmp_path / "log", "--model_dir", str(tmp_path / "missing"))
    server.start()
    try:
        assert server.process.wait(60) in (1, 2)
        assert "missing" in server.log().splitlines()[-1]
    finally:
        server.stop()


@pytest.mark.parametrize("flag", ["http_port", "grpc_port"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, flag: str) -> None:
    server = KServeServer(tmp_path / "log", *fake_arguments(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        setattr(server, flag, port)
        server.start()
        try:
            assert server.process.wait(60) == 1
        finally:
            server.stop()
    assert f"{flag}: {port}" in server.log() and "Traceback" not in server.log()


def test_a_server_that_is_still_loading_ends_when_asked(tmp_path: Path) -> None:
    server = KServeServer(tmp_path / "log", "--max_model_len=512", "--drain_delay_s=0")
    server.start()
    try:
        server.wait_until(lambda: server.status("/") == 200)
        engines = children(server.process.pid)
        assert server.status("/health") == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, server.log()
        assert engines and all(map(is_gone, engines))
    finally:
        server.stop()


def test_a_slow_load_is_alive_and_not_ready(tmp_path: Path) -> None:
    """The embedded model, which takes a second or two; then it answers as `make kserve` serves it."""
    server = KServeServer(tmp_path / "log", "--model_name=smollm2", "--max_model_len=512")
    server.start()
    try:
        server.wait_until(lambda: server.status("/") == 200)
        probes = [server.status(path) for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/smollm2/ready")]
        assert probes == [200, 503, 503]
        assert server.post("/v2/models/smollm2/infer", {"inputs": []})[0] == 503
        server.wait_until(lambda: server.status("/v2/health/ready") == 200)
        assert "loading weights: 100%" in server.log()
        ask = {"text_input": "The capital of France is", "max_tokens": 4, "temperature": 0}
        status, answer = server.post("/v2/models/smollm2/generate", ask)
        assert status == 200 and "Paris" in answer["text_output"], json.dumps(answer)
    finally:
        assert server.stop() == 0
