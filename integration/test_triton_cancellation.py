"""Clients that go away, and deadlines: what they held is free at once, and others go on."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import triton_clients as clients

from octavo_triton.launch import TritonServer

# Some two minutes of tokens: nothing here ends by itself while a test waits.
ENDLESS = {"max_tokens": 8000, "ignore_eos": True, "temperature": 0}
# Some seconds of prefill, in many steps.
LONG_PROMPT = "hello " * 7500
# The server notices within 100 ms, and blocks are free once the step under way is over, which with a chunk of a long
# prompt takes up to half a second. The gauges that show it are a quarter of a second old, and the machine may be busy.
AT_ONCE_S = 5
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
    started = time.monotonic()
    LEAVE[how](client)
    clients.wait_until(lambda: log_lines(triton_server, CANCELLED) > before, AT_ONCE_S)
    cancelled_s = time.monotonic() - started
    clients.wait_until(lambda: clients.is_idle(triton_server), AT_ONCE_S)
    print(f"cancelled after {1000 * cancelled_s:.0f} ms, free after {1000 * (time.monotonic() - started):.0f} ms")
    assert log_lines(triton_server, CANCELLED) == before + 1


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
