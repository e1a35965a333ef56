"""HealthCheck over an engine that dies when the test says so."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import octavo
from octavo_triton.errors import UnhealthyEngine, error_reply
from octavo_triton.health import HealthCheck, can_unload_models

pb_utils = sys.modules["triton_python_backend_utils"]
WAIT_S = 10


class MortalEngine:
    """Loading until it is ready or dead; counts how often it was asked."""

    def __init__(self) -> None:
        self.failure: Exception | None = TimeoutError("loading")
        self.asked = threading.Semaphore(0)

    def wait_ready(self, timeout_s: float | None = None) -> None:
        assert timeout_s == 0
        self.asked.release()
        if self.failure is not None:
            raise self.failure

    def is_asked(self) -> bool:
        return self.asked.acquire(timeout=WAIT_S)


class Unloads:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.called = threading.Event()
        self.error: Exception | None = None

    def __call__(self, name: str) -> None:
        self.names.append(name)
        self.called.set()
        if self.error is not None:
            raise self.error


@pytest.fixture
def unloads(monkeypatch: pytest.MonkeyPatch) -> Unloads:
    recorder = Unloads()
    monkeypatch.setattr(pb_utils, "unload_model", recorder, raising=False)
    monkeypatch.setattr("octavo_triton.health.CHECK_INTERVAL_S", 0.01)
    return recorder


@pytest.fixture
def watch() -> Iterator[Callable[..., HealthCheck]]:
    checks: list[HealthCheck] = []

    def start(engine: MortalEngine, can_unload: bool = True) -> HealthCheck:
        checks.append(HealthCheck(engine, "smol", can_unload))  # type: ignore[arg-type]
        return checks[-1]

    yield start
    for check in checks:
        check.close()


Watch = Callable[..., HealthCheck]


def test_a_death_that_no_request_sees_unloads_the_model_once(watch: Watch, unloads: Unloads) -> None:
    engine = MortalEngine()
    check = watch(engine)
    assert engine.is_asked()
    engine.failure = None
    assert engine.is_asked()
    assert engine.is_asked()
    assert not unloads.names
    engine.failure = octavo.EngineDead("gone for good")
    assert unloads.called.wait(WAIT_S)
    check.close()
    assert unloads.names == ["smol"]


def test_clients_are_told_of_the_death_in_the_contracts_words(watch: Watch, unloads: Unloads) -> None:
    check = watch(MortalEngine())
    reply = error_reply(check.explain(octavo.EngineDead("the engine process was ended by SIGKILL")))
    assert (reply.code, reply.text) == ("UNAVAILABLE", "Model is unavailable due to unhealthy vLLM engine")


def test_other_errors_are_told_as_they_are(watch: Watch, unloads: Unloads) -> None:
    check = watch(MortalEngine())
    for error in (octavo.RequestFailed("x"), octavo.RequestCancelled(), KeyError("x")):
        assert check.explain(error) is error
    # An end that is wanted is no illness.
    check.close()
    wanted = octavo.EngineDead("the engine is shutting down")
    assert check.explain(wanted) is wanted


def test_a_server_that_cannot_unload_is_not_asked_to(watch: Watch, unloads: Unloads) -> None:
    engine = MortalEngine()
    engine.failure = octavo.EngineDead("gone")
    check = watch(engine, can_unload=False)
    assert engine.is_asked()
    check.close()
    assert not unloads.names


def test_an_unload_that_fails_is_logged_and_clients_are_still_told(
    watch: Watch, unloads: Unloads, caplog: pytest.LogCaptureFixture
) -> None:
    unloads.error = RuntimeError("no such model")
    engine = MortalEngine()
    engine.failure = octavo.EngineDead("gone")
    check = watch(engine)
    assert unloads.called.wait(WAIT_S)
    assert isinstance(check.explain(octavo.EngineDead("gone")), UnhealthyEngine)
    check.close()
    assert unloads.names == ["smol"]
    assert "model smol could not be unloaded; it refuses all requests" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model-control-mode=explicit", "--x"], True),
        (["--model-control-mode", "explicit"], True),
        (["--model-control-mode=poll"], False),
        (["--model-control-mode", "none", "explicit"], False),
        ([], False),
    ],
)
def test_the_servers_command_line_tells_whether_models_can_be_unloaded(arguments: list[str], expected: bool) -> None:
    command = ["/bin/sh", "-c", "echo; read line", "tritonserver", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        # Before its first line it may still be the process that starts it.
        server.stdout.readline()
        assert can_unload_models(server.pid) is expected


def test_a_parent_that_cannot_be_read_cannot_unload() -> None:
    assert not can_unload_models(2**22 + 1)
