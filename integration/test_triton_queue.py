"""Requests that wait: their cancellation, their order, and the queue's bound; one request runs at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import triton_clients as clients
import triton_ways as ways
from model_repositories import KIND_MODEL, REPORTING, add_fake_model, killed_afterwards, options_for
from tritonclient.utils import InferenceServerException

from octavo_triton.launch import TritonServer

pytestmark = pytest.mark.slow

ENDLESS = {"max_tokens": 40_000, "ignore_eos": True, "request_priority": -10}
MAX_WAITING = 2
AT_ONCE_S = 2


@pytest.fixture(scope="module")
def server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose model talks to one client at a time."""
    repository = tmp_path_factory.mktemp("queue")
    add_fake_model(repository, "smollm2", KIND_MODEL + REPORTING, max_num_seqs=1, max_waiting=MAX_WAITING)
    with killed_afterwards(options_for(repository, server_dir, load_models=None)) as server:
        yield server


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
    with clients.grpc_stream(server) as (client, next_answer):
        with somebody_running(server):
            for number, priority in enumerate(("5", -1), start=1):
                inputs = clients.request_tensors("b", {"max_tokens": 8, "request_priority": priority})
                client.async_stream_infer("smollm2", inputs, request_id=f"priority {priority}")
                wait_for_waiting(server, number)
        results = [next_answer() for _ in range(2)]
    assert [error for _, error in results] == [None, None]
    assert [result.get_response().id for result, _ in results] == ["priority -1", "priority 5"]
