"""Many clients at once: everybody gets exactly their own text, whoever else goes away."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import triton_clients as clients

from octavo_triton.launch import TritonServer

PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "List three fruits:",
    "Water boils at",
    "The meaning of life",
    "def fibonacci(n):",
    "Roses are red,",
    "In 1969, men first",
)
NUM_STREAMS = 64
MAX_TOKENS = (4, 40)


@pytest.fixture(scope="module")
def texts(triton_server: TritonServer) -> dict[str, str]:
    """The longest completion of each prompt, one request at a time; shorter ones are its beginnings."""
    return {prompt: clients.text_of(triton_server, prompt, max_tokens=MAX_TOKENS[1]) for prompt in PROMPTS}


def over_grpc(server: TritonServer, prompt: str, max_tokens: int, leave_after: int | None) -> str:
    client = clients.GrpcStream(server, prompt, {"temperature": 0, "max_tokens": max_tokens}, stream=True)
    text = ""
    for num_responses, deltas in enumerate(client):
        if num_responses == leave_after:
            client.cancel()
            return text
        text += deltas[0]
    client.close()
    return text


def over_http(server: TritonServer, prompt: str, max_tokens: int, leave_after: int | None) -> str:
    text = ""
    with clients.http_stream(server, {"text_input": prompt, "max_tokens": max_tokens} | clients.GREEDY) as events:
        for num_responses, event in enumerate(events):
            if num_responses == leave_after:
                break
            text += event["text_output"]
    return text


def over_generate(server: TritonServer, prompt: str, max_tokens: int, leave_after: int | None) -> str:
    return clients.text_of(server, prompt, max_tokens=max_tokens)


WAYS: tuple[Callable[[TritonServer, str, int, int | None], str], ...] = (over_grpc, over_http, over_generate)


@pytest.mark.slow
def test_128_streams_with_random_cancels_all_end_right(triton_server: TritonServer, texts: dict[str, str]) -> None:
    choose = random.Random(7)
    with ThreadPoolExecutor(2 * NUM_STREAMS) as pool:
        running = []
        for number in range(2 * NUM_STREAMS):
            prompt, max_tokens = choose.choice(PROMPTS), choose.randint(*MAX_TOKENS)
            leave_after = choose.randrange(max_tokens) if choose.random() < 0.25 else None
            way = WAYS[number % 2]
            running.append((prompt, leave_after, pool.submit(way, triton_server, prompt, max_tokens, leave_after)))
        for prompt, leave_after, future in running:
            text = future.result()
            assert texts[prompt].startswith(text)
            assert text or leave_after is not None
    clients.wait_until(lambda: clients.is_idle(triton_server), 10)
