"""Thousands of requests, good, bad and left early, while a model comes and goes: nothing is left behind."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import model_repositories as fake
import psutil
import pytest
import triton_clients as clients

from octavo_triton.launch import TritonServer

PROMPTS = ("The capital of France is", "Once upon a time", "List three fruits:", "Water boils at")
MAX_TOKENS = 8
NUM_CLIENTS = 32
# The steady model is the embedded one; the other is unloaded and loaded again between its requests.
STEADY, COMING_AND_GOING = "smollm2", "coming_and_going"
# What allocators, caches and log buffers may still grow by after the first requests, in bytes.
SLACK_BYTES = 32 << 20
SHM = Path("/dev/shm")
BAD = (
    {"text_input": ""},
    {"text_input": "x", "temperature": -1},
    {"text_input": "x", "max_tokens": "many"},
    {"text_input": "x", "sampling_parameters": "{"},
    {"text_input": "x", "sampling_parameters": '{"no_such": 1}'},
    {"text_input": "x " * 20_000},
    {"text_input": "", "messages": "[]"},
    {"stream": True, "text_input": "x", "exclude_input_in_output": False},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, server_dir: Path) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("soak")
    fake.add_model(repository, STEADY, fake.KIND_MODEL + fake.REPORTING)
    fake.add_fake_model(repository, COMING_AND_GOING)
    with fake.killed_afterwards(
        fake.options_for(repository, server_dir, load_models=(STEADY, COMING_AND_GOING))
    ) as started:
        yield started


@dataclass(frozen=True, slots=True)
class Held:
    """What the server holds: processes by kind, open files, resident bytes of its oldest processes, shared memory."""

    processes: dict[str, int]
    num_fds: int
    rss: dict[str, int]
    num_shm: int

    @classmethod
    def by(cls, server: TritonServer) -> Held:
        found = clients.processes(server)
        # The steady model was loaded first: its stub and engine are the oldest.
        oldest = {kind: min(processes, key=psutil.Process.create_time) for kind, processes in found.items()}
        return cls(
            processes={kind: len(processes) for kind, processes in found.items()},
            num_fds=sum(process.num_fds() for process in oldest.values()),
            rss={kind: process.memory_info().rss for kind, process in oldest.items()},
            num_shm=len(list(SHM.glob(f"octavo_*_{server.options.http_port}_*"))),
        )


def good(server: TritonServer, choose: random.Random) -> str:
    prompt, max_tokens = choose.choice(PROMPTS), choose.randint(1, MAX_TOKENS)
    if choose.random() < 0.3:
        assert clients.text_of(server, prompt, max_tokens=max_tokens)
    elif choose.random() < 0.5:
        assert clients.grpc_text(server, prompt, max_tokens=max_tokens)
    else:
        assert clients.http_stream_text(server, {"text_input": prompt, "max_tokens": max_tokens} | clients.GREEDY)
    return "good"


def cancelled(server: TritonServer, choose: random.Random) -> str:
    endless = {"max_tokens": 4000, "ignore_eos": True, "temperature": 0}
    if choose.random() < 0.5:
        with clients.http_stream(server, {"text_input": choose.choice(PROMPTS)} | endless) as events:
            next(events)
    else:
        client = clients.GrpcStream(server, choose.choice(PROMPTS), endless, stream=True)
        if choose.random() < 0.5:
            next(iter(client))
        client.cancel()
    return "cancelled"


def bad(server: TritonServer, choose: random.Random) -> str:
    status, answer = clients.generate(server, choose.choice(BAD))
    assert status == 400, answer
    assert answer["error"]
    return "bad"


def to_the_other(server: TritonServer, choose: random.Random) -> str:
    """The other model may be away; then the server must say so, at once."""
    status, answer = fake.generate(server, COMING_AND_GOING, choose.choice(PROMPTS), max_tokens=choose.randint(1, 50))
    assert status == 200 or "error" in answer
    return "other, served" if status == 200 else "other, refused"


def one(server: TritonServer, number: int) -> str:
    choose = random.Random(number)
    (kind,) = choose.choices((good, cancelled, bad, to_the_other), weights=(60, 15, 15, 10))
    return kind(server, choose)


def reload_other(server: TritonServer) -> None:
    fake.unload(server, COMING_AND_GOING)
    clients.wait_until(lambda: fake.num_processes(server) == (1, 1))
    assert fake.load(server, COMING_AND_GOING) == (200, "")


def serve(server: TritonServer, numbers: range, num_reloads: int) -> Counter[str]:
    """All requests, NUM_CLIENTS at a time, while the other model is reloaded; what came of them."""
    with ThreadPoolExecutor(NUM_CLIENTS + 1) as pool:
        ends = [pool.submit(one, server, number) for number in numbers]
        for i in range(num_reloads):
            # Evenly spread, so that it is there as often as away.
            ends[len(ends) * (i + 1) // (num_reloads + 1)].exception()
            reload_other(server)
        return Counter(end.result() for end in ends)


def check_nothing_is_left(server: TritonServer, num_requests: int, num_reloads: int) -> None:
    serve(server, range(100), 1)
    clients.wait_until(lambda: clients.is_idle(server))
    before = Held.by(server)
    ends = serve(server, range(100, 100 + num_requests), num_reloads)
    print(ends)
    assert min(ends[kind] for kind in ("good", "cancelled", "bad", "other, served")) > num_requests // 60
    clients.wait_until(lambda: clients.is_idle(server), 10)
    clients.wait_until(lambda: Held.by(server).num_fds <= before.num_fds + 4, 10)
    after = Held.by(server)
    assert after.processes == before.processes
    assert after.num_shm == before.num_shm
    grown = {kind: after.rss[kind] - before.rss[kind] for kind in before.rss}
    print(f"grown by {grown} bytes")
    assert max(grown.values()) < SLACK_BYTES, grown


@pytest.mark.slow
def test_nothing_is_left_of_300_requests(server: TritonServer) -> None:
    check_nothing_is_left(server, 300, 1)


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_nothing_is_left_of_5000_requests(server: TritonServer) -> None:
    check_nothing_is_left(server, 5000, 8)
