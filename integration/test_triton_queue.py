"""Requests that wait: their cancellation, their order, and the queue's bound; one request runs at a time."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import triton_clients as clients
import triton_ways as ways
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from octavo.testing import make_fake_model
from octavo_triton.launch import ServerOptions, TritonServer, free_port

pytestmark = pytest.mark.slow

ENDLESS = {"max_tokens": 150_000, "ignore_eos": True, "request_priority": -10}
MAX_WAITING = 2
AT_ONCE_S = 2
CONFIG = """backend: "octavo"
model_transaction_policy { decoupled: true }
instance_group [ { count: 1 kind: KIND_MODEL } ]
parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "true" } }
"""


@pytest.fixture(scope="module")
def server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose model says anything quickly, to one client at a time."""
    folder = tmp_path_factory.mktemp("queue")
    engine = {
        "model": str(make_fake_model(folder / "weights", max_position_embeddings=200_000)),
        "executor": "octavo.testing:create_fake_executor",
        "num_gpu_blocks_override": 20_000,
        "max_num_seqs": 1,
        "max_waiting": MAX_WAITING,
    }
    (folder / "models/smollm2/1").mkdir(parents=True)
    (folder / "models/smollm2/config.pbtxt").write_text(CONFIG)
    (folder / "models/smollm2/1/model.json").write_text(json.dumps(engine))
    options = ServerOptions(
        model_repository=folder / "models",
        server_dir=server_dir,
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        start_timeout_s=120,
    )
    with TritonServer(options) as server:
        yield server
        # A stream that ends by `triton_grpc_error` now and then keeps its model alive in this release, and the server
        # then waits for its whole exit timeout.
        server.kill()


@contextmanager
def somebody_running(server: TritonServer) -> Iterator[clients.GrpcStream]:
    """Takes the only place until the block is left."""
    client = clients.GrpcStream(server, "a", ENDLESS, stream=False)
    clients.wait_until(lambda: clients.gauge(server, "vllm:num_requests_running") == 1)
    try:
        yield client
    finally:
        client.cancel()
        clients.wait_until(lambda: clients.is_idle(server))


def wait_for_waiting(server: TritonServer, number: int, timeout_s: float = clients.WAIT_S) -> None:
    clients.wait_until(lambda: clients.gauge(server, "vllm:num_requests_waiting") == number, timeout_s)


@pytest.mark.parametrize("stream", [True, False])
def test_a_cancel_takes_a_request_out_of_the_queue(server: TritonServer, stream: bool) -> None:
    with somebody_running(server):
        for leave in (clients.GrpcStream.cancel, clients.GrpcStream.vanish):
            client = clients.GrpcStream(server, "b", {"max_tokens": 4}, stream=stream)
            wait_for_waiting(server, 1)
            leave(client)
            wait_for_waiting(server, 0, AT_ONCE_S)


def test_one_request_more_than_may_wait_is_refused_as_unavailable(server: TritonServer) -> None:
    with somebody_running(server):
        waiting = [clients.GrpcStream(server, "b", {"max_tokens": 4}, stream=True) for _ in range(MAX_WAITING)]
        wait_for_waiting(server, MAX_WAITING)
        status, answer = clients.generate(server, {"text_input": "c"})
        assert status == 400
        assert answer["error"].startswith("Exceeds maximum queue size: 2 requests are waiting, at most 2 may; ")
        request = ways.Call("smollm2", {"text_input": "c"}, headers={"triton_grpc_error": "true"})
        with pytest.raises(InferenceServerException, match="Exceeds maximum queue size") as caught:
            ways.over_grpc_stream(server, request)
        assert "UNAVAILABLE" in str(caught.value.status())
        for client in waiting:
            client.cancel()


def test_a_lower_request_priority_runs_first(server: TritonServer) -> None:
    arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(callback=lambda result, error: arrived.put((result, error)))
        with somebody_running(server):
            for number, priority in enumerate(("5", -1), start=1):
                inputs = clients.request_tensors("b", {"max_tokens": 8, "request_priority": priority})
                client.async_stream_infer("smollm2", inputs, request_id=f"priority {priority}")
                wait_for_waiting(server, number)
        results = [arrived.get(timeout=clients.WAIT_S) for _ in range(2)]
    assert [error for _, error in results] == [None, None]
    assert [result.get_response().id for result, _ in results] == ["priority -1", "priority 5"]
