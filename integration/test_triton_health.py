"""Engines that die or hang behind a real server: what goes on, what clients are told, and when a model is unloaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import triton_clients as clients
import tritonclient.grpc as grpcclient
from model_repositories import (
    KIND_MODEL,
    UNARY,
    add_fake_model,
    generate,
    killed_afterwards,
    load,
    num_processes,
    options_for,
    unload,
)
from tritonclient.utils import InferenceServerException

from octavo_triton.launch import TritonServer

UNAVAILABLE = "Model is unavailable due to unhealthy vLLM engine"
PLAIN = "Error generating stream: the engine process was ended by SIGKILL, after 0 restarts within 300 s"
HANG_AT_STEP = 50


def checked(parameter: str) -> str:
    return KIND_MODEL + f'parameters {{ key: "{parameter}" value {{ string_value: "true" }} }}\n'


@pytest.fixture(scope="module")
def explicit_server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Models that may be started anew, and mortal ones, with the health check and without."""
    repository = tmp_path_factory.mktemp("explicit")
    add_fake_model(repository, "restarted", checked("ENABLE_VLLM_HEALTH_CHECK"), max_restarts=1)
    add_fake_model(repository, "mortal", checked("ENABLE_VLLM_HEALTH_CHECK"), max_restarts=0)
    add_fake_model(repository, "idle", checked("ENABLE_HEALTH_CHECK"), max_restarts=0)
    add_fake_model(repository, "unchecked", KIND_MODEL + UNARY, max_restarts=0)
    with killed_afterwards(options_for(repository, server_dir)) as running:
        yield running


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists no step hangs; whoever removes it arms the fault, once."""
    file = tmp_path_factory.mktemp("fault") / "fired"
    file.touch()
    return file


@pytest.fixture(scope="module")
def plain_server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory, armed: Path) -> Iterator[TritonServer]:
    """A server that loads all of its models at the start and never unloads one; its engines can be made to hang."""
    repository = tmp_path_factory.mktemp("plain")
    add_fake_model(repository, "hangs", step_timeout_s=1)
    add_fake_model(repository, "mortal", checked("ENABLE_HEALTH_CHECK") + UNARY, max_restarts=0)
    fault = {"OCTAVO_ALLOW_FAULTS": "1", "OCTAVO_FAULT": f"hang_at_step={HANG_AT_STEP},once={armed}"}
    options = options_for(repository, server_dir, load_models=None, environment=fault)
    with killed_afterwards(options) as running:
        yield running


def engines(server: TritonServer) -> list[psutil.Process]:
    return clients.processes(server)["engine"]


def text_with_a_death(server: TritonServer, model: str, max_tokens: int) -> str:
    """The text of a stream whose engine is killed after its first piece. Raises what the stream ends with."""
    text = ""
    body = {"text_input": "hello", "max_tokens": max_tokens, "seed": 1}
    with clients.http_stream(server, body, model=model) as events:
        for event in events:
            if "error" in event:
                raise RuntimeError(event["error"])
            if not text:
                (engine,) = engines(server)
                engine.kill()
            text += event["text_output"]
    return text


@pytest.mark.slow
def test_within_the_restart_limit_streams_go_on_and_nothing_is_unloaded(explicit_server: TritonServer) -> None:
    assert load(explicit_server, "restarted") == (200, "")
    expected = generate(explicit_server, "restarted", max_tokens=200)[1]["text_output"]
    assert text_with_a_death(explicit_server, "restarted", 200) == expected
    assert generate(explicit_server, "restarted", max_tokens=200)[1]["text_output"] == expected
    # The second death is one too many.
    with pytest.raises(RuntimeError, match=UNAVAILABLE):
        text_with_a_death(explicit_server, "restarted", 200)
    clients.wait_until(lambda: num_processes(explicit_server) == (0, 0))


@pytest.mark.slow
def test_a_death_for_good_is_told_to_all_and_unloads_the_model(explicit_server: TritonServer) -> None:
    assert load(explicit_server, "mortal") == (200, "")
    with pytest.raises(RuntimeError) as caught:
        text_with_a_death(explicit_server, "mortal", 20_000)
    assert str(caught.value) == UNAVAILABLE

    def is_unloaded() -> bool:
        status, answer = generate(explicit_server, "mortal")
        assert status != 200
        assert answer["error"] == UNAVAILABLE or "has no available versions" in answer["error"]
        return status == 404

    clients.wait_until(is_unloaded)
    clients.wait_until(lambda: num_processes(explicit_server) == (0, 0))
    assert "[vllm] Engine is not healthy and model will be unloaded: " in explicit_server.log_path.read_text()
    assert load(explicit_server, "mortal") == (200, "")
    assert generate(explicit_server, "mortal")[0] == 200
    unload(explicit_server, "mortal")
    clients.wait_until(lambda: num_processes(explicit_server) == (0, 0))


@pytest.mark.slow
def test_a_death_is_noticed_without_a_request(explicit_server: TritonServer) -> None:
    assert load(explicit_server, "idle") == (200, "")
    (engine,) = engines(explicit_server)
    engine.kill()
    clients.wait_until(lambda: num_processes(explicit_server) == (0, 0))
    status, answer = generate(explicit_server, "idle")
    assert (status, "has no available versions" in answer["error"]) == (404, True)


@pytest.mark.slow
def test_without_the_health_check_the_cause_is_told_and_the_model_stays(explicit_server: TritonServer) -> None:
    assert load(explicit_server, "unchecked") == (200, "")
    (engine,) = engines(explicit_server)
    engine.kill()
    clients.wait_until(lambda: not engine.is_running())
    for _ in range(2):
        status, answer = generate(explicit_server, "unchecked")
        assert (status, answer["error"]) == (400, PLAIN)
    unload(explicit_server, "unchecked")
    clients.wait_until(lambda: num_processes(explicit_server) == (0, 0))


@pytest.mark.slow
def test_a_hung_step_is_a_pause_for_the_client(plain_server: TritonServer, armed: Path) -> None:
    armed.unlink()
    body = {"text_input": "hello", "max_tokens": 2 * HANG_AT_STEP, "seed": 1}
    started = time.monotonic()
    with clients.http_stream(plain_server, body, model="hangs") as events:
        text = "".join(event["text_output"] for event in events)
    assert armed.exists()
    assert time.monotonic() - started > 1
    status, answer = generate(plain_server, "hangs", max_tokens=2 * HANG_AT_STEP)
    assert (status, answer["text_output"]) == (200, text)


@pytest.mark.slow
def test_a_server_without_explicit_control_survives_and_keeps_refusing(plain_server: TritonServer) -> None:
    """One that is asked to unload a model under any other model control may abort: so it is not asked."""
    with grpcclient.InferenceServerClient(plain_server.grpc_address) as client:
        tensors = clients.request_tensors("hello", {"max_tokens": 20_000})
        ended = threading.Event()
        errors: list[InferenceServerException] = []

        def keep(result: object, error: InferenceServerException) -> None:
            errors.append(error)
            ended.set()

        healthy = {engine.pid for engine in engines(plain_server)}
        client.async_infer("mortal", tensors, keep)
        # The models' engines are told apart by what kills them: only one has work, and only one may not come back.
        for engine in engines(plain_server):
            engine.kill()
        assert ended.wait(clients.WAIT_S)
        errors += [unary_error(client, tensors) for _ in range(3)]
    assert {(error.message(), error.status()) for error in errors} == {(UNAVAILABLE, "StatusCode.UNAVAILABLE")}
    assert generate(plain_server, "hangs")[0] == 200
    assert "--model-control-mode=explicit would unload it" in plain_server.log_path.read_text()
    assert len(healthy) == 2
    assert len(engines(plain_server)) == 1


def unary_error(client: grpcclient.InferenceServerClient, tensors: list[grpcclient.InferInput]) -> Exception:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("mortal", tensors)
    return caught.value
