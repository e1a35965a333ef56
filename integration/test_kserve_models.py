"""Models that come and go while the server runs, and what their clients are told meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kserve_server import KServeServer, children, fake_arguments

from octavo.testing import make_fake_model

pytestmark = pytest.mark.slow

ASK = {"text_input": "hello", "max_tokens": 8, "seed": 1}
TENSOR = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["x"]}
# Each way to ask a model for text.
WAYS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "second", "messages": [{"role": "user", "content": "x"}]},
    "/openai/v1/completions": {"model": "second", "prompt": "x", "stream": True},
    "/v2/models/second/generate": ASK,
    "/v2/models/second/generate_stream": ASK,
    "/v2/models/second/infer": {"inputs": [TENSOR]},
    "/v1/models/second:predict": {"instances": ["x"]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KServeServer]:
    """Serves `fake` and `second`; in its store are `stored`, and `broken`, which cannot be loaded."""
    folder = tmp_path_factory.mktemp("server")
    arguments = fake_arguments(folder)
    (folder / "models.json").write_text(json.dumps({"second": {"model": "fake"}}))
    make_fake_model(folder / "store/stored")
    (folder / "store/broken").mkdir()
    more = ["--models", str(folder / "models.json"), "--model_store", str(folder / "store")]
    with KServeServer(folder / "log", *arguments, *more) as running:
        yield running


@pytest.fixture
def second(server: KServeServer) -> Iterator[KServeServer]:
    """Has `second` loaded before and after the test."""
    yield server
    assert change(server, "load", "second") == (200, {"name": "second", "load": True})


def change(server: KServeServer, verb: str, name: str) -> tuple[int, Any]:
    """Loads or unloads a model; the status and the answer."""
    return server.post(f"/v2/repository/models/{name}/{verb}", {})


def states(server: KServeServer, **body: bool) -> dict[str, tuple[str, str]]:
    """State and reason by model, as the index has them."""
    status, models = server.post("/v2/repository/index", body)
    assert status == 200, models
    return {model["name"]: (model["state"], model["reason"]) for model in models}


def refusal(server: KServeServer, path: str) -> tuple[int, str | None, str]:
    """The status, the Retry-After and the text of the answer to a request that is not taken."""
    body, head = json.dumps(WAYS[path]).encode(), {"Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(server.url + path, body, head), timeout=60)
    return raised.value.code, raised.value.headers["Retry-After"], raised.value.read().decode()


def test_an_unloaded_model_is_gone_with_its_process_and_comes_back(second: KServeServer) -> None:
    before = second.post("/v2/models/second/generate", ASK)
    engines = children(second.process.pid)
    assert change(second, "unload", "second") == (200, {"name": "second", "unload": True})
    assert len(children(second.process.pid)) == len(engines) - 1
    for path in WAYS:
        assert refusal(second, path)[0] == 404, path
    assert second.status("/v2/models/second/ready") == 404
    assert second.status("/v2/health/ready") == second.status("/v2/models/fake/ready") == 200
    assert json.loads(second.get("/v1/models")[1])["models"] == json.loads(second.get("/v2/models")[1])["models"]
    assert "second" not in second.get("/v1/models")[1]
    assert 'model_name="second"' not in second.get("/metrics")[1]
    assert states(second)["second"] == ("UNAVAILABLE", "unloaded")
    assert change(second, "load", "second")[0] == 200
    assert second.status("/v2/models/second/ready") == 200
    assert second.post("/v2/models/second/generate", ASK) == before
    assert states(second)["second"] == ("READY", "")


def test_requests_that_run_end_before_their_model_is_unloaded(second: KServeServer) -> None:
    ask = ASK | {"max_tokens": 250, "return_finish_reason": True, "stream": True}
    stream = second.events("/v2/models/second/generate_stream", ask)
    events = [next(stream)]
    reader = threading.Thread(target=lambda: events.extend(stream))
    reader.start()
    assert change(second, "unload", "second")[0] == 200
    reader.join(30)
    assert events[-1]["finish_reason"] == "length"


def test_what_is_unloaded_twice_or_loaded_twice_is_done_once(second: KServeServer) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert [s for s, _ in threads.map(lambda _: change(second, "unload", "second"), range(4))] == [200] * 4
        engines = children(second.process.pid)
        assert [s for s, _ in threads.map(lambda _: change(second, "load", "second"), range(4))] == [200] * 4
    assert len(children(second.process.pid)) == len(engines) + 1


def test_a_model_of_the_store_is_loaded_by_its_name(server: KServeServer) -> None:
    assert states(server)["stored"] == ("UNAVAILABLE", "")
    assert server.post("/v2/models/stored/generate", ASK)[0] == 404
    assert change(server, "load", "stored")[0] == 200
    assert server.post("/v2/models/stored/generate", ASK)[1]["text_output"]
    assert "stored" in json.loads(server.get("/v1/models")[1])["models"]
    assert change(server, "unload", "stored")[0] == 200
    assert states(server, ready=True).keys() == {"fake", "second"}


def test_a_model_that_cannot_be_loaded_leaves_the_server_as_it_was(server: KServeServer) -> None:
    status, answer = change(server, "load", "broken")
    assert status == 503 and "broken" in answer["error"]
    assert states(server)["broken"] == ("UNAVAILABLE", answer["error"])
    assert server.status("/v2/health/live") == server.status("/v2/health/ready") == 200
    assert "broken" not in server.get("/v1/models")[1]


@pytest.mark.parametrize("name", ["nobody", "..", "%2e%2e", "..%2Ffake", "store%2Fstored", ".hidden"])
@pytest.mark.parametrize("verb", ["load", "unload"])
def test_what_is_neither_named_nor_stored_does_not_exist(server: KServeServer, verb: str, name: str) -> None:
    assert change(server, verb, name)[0] == 404


_GRPC = """
import sys; address = sys.argv.pop()
import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb, grpc_predict_v2_pb2_grpc as service
stub = service.GRPCInferenceServiceStub(grpc.insecure_channel(address))
def code(call, request):
    try:
        return call(request)
    except grpc.RpcError as error:
        return error.code()
print(code(stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="second")).isUnloaded)
print(code(stub.ModelInfer, pb.ModelInferRequest(model_name="second")))
print(code(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="second")).isLoaded)
print(code(stub.ModelReady, pb.ModelReadyRequest(name="second")).ready)
print(code(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="broken")))
print(code(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="nobody")))
"""


def test_grpc_loads_and_unloads_too(second: KServeServer) -> None:
    command = [sys.executable, "-c", _GRPC, f"127.0.0.1:{second.grpc_port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    codes = ["True", "NOT_FOUND", "True", "True", "UNAVAILABLE", "NOT_FOUND"]
    assert [line.removeprefix("StatusCode.") for line in done.stdout.splitlines()] == codes, done.stderr


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[KServeServer, Path]]:
    """A server whose engines wait for a file before they load, and end there if it is not empty."""
    gate, python = tmp_path / "gate", tmp_path / "python"
    wait = f'while [ ! -e "{gate}" ]; do sleep 0.02; done; [ ! -s "{gate}" ] || exit 3'
    python.write_text(f'#!/bin/sh\n{wait}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    server = KServeServer(tmp_path / "log", *fake_arguments(tmp_path, name="second", engine_python=python))
    server.start()
    try:
        server.wait_until(lambda: server.status("/") == 200)
        yield server, gate
    finally:
        server.stop()


def test_requests_before_the_model_is_loaded_are_told_so_on_every_route(gated: tuple[KServeServer, Path]) -> None:
    server, gate = gated
    for path in WAYS:
        status, retry_after, text = refusal(server, path)
        assert (status, retry_after) == (503, "5"), path
        assert "'second' is loading" in text
    assert states(server) == {"second": ("LOADING", "")}
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(change, server, "load", "second")
        gate.touch()
        assert waiting.result(60)[0] == 200
    assert server.status("/v2/health/ready") == server.post("/v2/models/second/generate", ASK)[0] == 200


def test_a_load_that_is_unwanted_or_fails_leaves_a_server_that_can_load_again(gated: tuple[KServeServer, Path]) -> None:
    server, gate = gated
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(change, server, "load", "second")
        server.wait_until(lambda: states(server)["second"][0] == "LOADING")
        assert change(server, "unload", "second")[0] == 200
        assert waiting.result(60)[0] == 503
    assert server.status("/v2/health/ready") == 200
    gate.write_text("fail")
    status, answer = change(server, "load", "second")
    assert status == 503 and "exited with status 3" in answer["error"]
    assert states(server) == {"second": ("UNAVAILABLE", answer["error"])}
    assert server.status("/v2/health/live") == server.status("/v2/health/ready") == 200
    gate.write_text("")
    assert change(server, "load", "second")[0] == 200


def test_a_load_behind_an_unload_is_a_load_of_its_own(gated: tuple[KServeServer, Path]) -> None:
    server, gate = gated
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(change, server, "load", "second")
        server.wait_until(lambda: states(server)["second"][0] == "LOADING")
        gate.touch()
        assert change(server, "unload", "second")[0] == 200
        assert change(server, "load", "second")[0] == 200
        assert waiting.result(60)[0] == 503


def test_a_drain_does_not_wait_for_a_load(gated: tuple[KServeServer, Path]) -> None:
    server, _ = gated
    assert change(server, "unload", "second")[0] == 200
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(change, server, "load", "second")
        server.wait_until(lambda: states(server)["second"][0] == "LOADING")
        server.process.send_signal(signal.SIGTERM)
        assert waiting.result(60) == (503, {"error": "the server is shutting down"})
    assert server.process.wait(60) == 0
