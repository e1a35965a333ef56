"""Clients that go away, and deadlines: what they held is free at once, and others go on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import pytest
import triton_clients as clients
from model_repositories import KIND_MODEL, REPORTING, add_fake_model, killed_afterwards, options_for

from octavo.testing import PACED_STEP_S
from octavo_triton.launch import TritonServer

# Some two minutes of tokens: nothing here ends by itself while a test waits.
ENDLESS = {"max_tokens": 8000, "ignore_eos": True, "temperature": 0}
# Some seconds of prefill, in many steps.
LONG_PROMPT = "hello " * 7500
# What a single cancel may take on a busy machine, with a step under way of up to half a second (a chunk of a long
# prompt) and gauges that are a quarter of a second old. What most of them take is tested where the steps are short.
AT_ONCE_S = 5
NOTICED_S = 0.1
NUM_CANCELS = 9
CANCELLING, CANCELLED = "[vllm] Cancelling the request", "[vllm] Successfully cancelled the request"


def is_running(server: TritonServer) -> bool:
    return clients.gauge(server, "vllm:num_requests_running") > 0


def log_lines(server: TritonServer, words: str) -> int:
    return server.log_path.read_text(encoding="utf-8", errors="replace").count(words)


def holds_blocks(server: TritonServer) -> bool:
    return clients.gauge(server, "vllm:kv_cache_usage_perc") > 0


LEAVE: dict[str, Callable[[clients.GrpcStream], None]] = {
    "cancel": clients.GrpcStream.cancel,
    "vanish": clients.GrpcStream.vanish,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("prompt", ["Tell me a story.", LONG_PROMPT], ids=["decoding", "prefilling"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "one response"])
def test_a_grpc_client_that_leaves_frees_its_blocks(
    triton_server: TritonServer, stream: bool, prompt: str, how: str
) -> None:
    clients.wait_until(lambda: clients.is_idle(triton_server))
    client = clients.GrpcStream(triton_server, prompt, ENDLESS, stream=stream)
    if stream and prompt is not LONG_PROMPT:
        next(iter(client))
    clients.wait_until(lambda: holds_blocks(triton_server))
    before = log_lines(triton_server, CANCELLED)
    LEAVE[how](client)
    clients.wait_until(lambda: log_lines(triton_server, CANCELLED) > before, AT_ONCE_S)
    clients.wait_until(lambda: clients.is_idle(triton_server), AT_ONCE_S)
    assert log_lines(triton_server, CANCELLED) == before + 1


@pytest.fixture(scope="module")
def paced_server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose model takes its time over many short steps, for one client at a time."""
    repository = tmp_path_factory.mktemp("cancellation")
    slow = {"max_num_seqs": 1, "max_num_batched_tokens": 16, "enable_prefix_caching": False}
    add_fake_model(repository, "smollm2", KIND_MODEL + REPORTING, **slow)
    with killed_afterwards(options_for(repository, server_dir, load_models=None)) as server:
        yield server


def decoding(server: TritonServer) -> clients.GrpcStream:
    client = clients.GrpcStream(server, "a", {"max_tokens": 40_000, "ignore_eos": True}, stream=True)
    next(iter(client))
    return client


def prefilling(server: TritonServer) -> clients.GrpcStream:
    clients.wait_until(lambda: clients.is_idle(server))
    client = clients.GrpcStream(server, "a" * 40_000, {}, stream=False)
    clients.wait_until(lambda: is_running(server))
    return client


def queued(server: TritonServer) -> clients.GrpcStream:
    """Behind one that decodes."""
    clients.wait_until(lambda: clients.gauge(server, "vllm:num_requests_waiting") == 0)
    client = clients.GrpcStream(server, "a", {}, stream=True)
    clients.wait_until(lambda: clients.gauge(server, "vllm:num_requests_waiting") == 1)
    return client


def cancelled_at(server: TritonServer) -> list[float]:
    """When each cancelled request had ended, by the server's log, which is in UTC and has no year."""
    line = rf"^I(\d{{4}} [\d:.]+) .*{re.escape(CANCELLED)}"
    log = server.log_path.read_text(encoding="utf-8", errors="replace")
    stamps = [f"{datetime.now(UTC).year} {stamp} +0000" for stamp in re.findall(line, log, re.MULTILINE)]
    return [datetime.strptime(stamp, "%Y %m%d %H:%M:%S.%f %z").timestamp() for stamp in stamps]


def cancel_s(server: TritonServer, begin: Callable[[TritonServer], clients.GrpcStream]) -> float:
    """Seconds from a client's cancel to the end of its request."""
    client = begin(server)
    num_before = len(cancelled_at(server))
    left_at = time.time()
    client.cancel()
    clients.wait_until(lambda: len(cancelled_at(server)) > num_before, AT_ONCE_S)
    return cancelled_at(server)[num_before] - left_at


@pytest.mark.slow
@pytest.mark.parametrize("begin", [decoding, prefilling, queued])
def test_a_cancelled_request_ends_within_100_ms_and_a_step(
    paced_server: TritonServer, begin: Callable[[TritonServer], clients.GrpcStream]
) -> None:
    runs_before = [decoding(paced_server)] if begin is queued else []
    taken_s = [cancel_s(paced_server, begin) for _ in range(NUM_CANCELS)]
    for client in runs_before:
        client.cancel()
    clients.wait_until(lambda: clients.is_idle(paced_server), AT_ONCE_S)
    assert 0 < median(taken_s) <= NOTICED_S + PACED_STEP_S, sorted(taken_s)


@pytest.mark.slow
def test_an_http_stream_that_is_left_frees_the_blocks_and_is_logged(triton_server: TritonServer) -> None:
    before = log_lines(triton_server, CANCELLING), log_lines(triton_server, CANCELLED)
    with clients.http_stream(triton_server, {"text_input": "Tell me a story."} | ENDLESS) as events:
        next(events)
        clients.wait_until(lambda: is_running(triton_server))
    clients.wait_until(lambda: clients.is_idle(triton_server), AT_ONCE_S)
    after = log_lines(triton_server, CANCELLING), log_lines(triton_server, CANCELLED)
    assert after == (before[0] + 1, before[1] + 1)


@pytest.mark.slow
def test_a_generate_that_is_left_ends_at_its_timeout(triton_server: TritonServer) -> None:
    """The server does not notice a client that leaves before the first response; the deadline covers it."""
    body = {"text_input": "Tell me a story.", "timeout": 1_000_000} | ENDLESS
    clients.leave(triton_server, "generate", body, after=lambda: is_running(triton_server))
    clients.wait_until(lambda: clients.is_idle(triton_server), AT_ONCE_S)


@pytest.mark.slow
def test_a_client_that_waits_is_told_of_its_timeout(triton_server: TritonServer) -> None:
    body = {"text_input": "Tell me a story.", "timeout": 200_000} | ENDLESS
    status, answer = clients.generate(triton_server, body)
    assert (status, answer["error"]) == (400, "Request timeout expired")


@pytest.mark.slow
def test_a_cancel_leaves_batch_mates_as_they_were(triton_server: TritonServer) -> None:
    expected = clients.text_of(triton_server, "Once upon a time", max_tokens=60)
    gone = clients.GrpcStream(triton_server, "Tell me a story.", ENDLESS, stream=True)
    next(iter(gone))
    with clients.http_stream(
        triton_server, {"text_input": "Once upon a time", "max_tokens": 60} | clients.GREEDY
    ) as events:
        first = next(events)["text_output"]
        gone.cancel()
        assert first + "".join(event["text_output"] for event in events) == expected
