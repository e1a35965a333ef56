"""Engines in processes of their own over the fake executor, and their certain end."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo.async_engine import AsyncEngine
from octavo.config import EngineConfig
from octavo.sampling_params import child_seed
from octavo.testing import fake_token, make_fake_model, mix

START_TIMEOUT_S = 60
FAKE_EXECUTOR = "octavo.testing:create_fake_executor"

StartEngine = Callable[..., AsyncEngine]


class Watch:
    """Watches one process by a descriptor of its own, so that a reused pid cannot fool it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def ended(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def watch() -> Iterator[Callable[[int], Watch]]:
    """Watches a process by pid, and kills it at the end if it still lives."""
    watches: list[Watch] = []

    def start(pid: int) -> Watch:
        watches.append(Watch(pid))
        return watches[-1]

    yield start
    for each in watches:
        each.kill()
        each.close()


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fake model whose context is long enough for streams that do not end by themselves during a test."""
    return make_fake_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=200_000)


@pytest.fixture
def start_engine(long_model: Path) -> Iterator[StartEngine]:
    """Starts engines (settings as of EngineConfig) and waits for them; shuts them down without a drain at the end."""
    engines: list[AsyncEngine] = []

    def start(wait: bool = True, **settings: object) -> AsyncEngine:
        defaults = {"model": str(long_model), "executor": FAKE_EXECUTOR, "num_gpu_blocks_override": 20_000}
        engines.append(AsyncEngine(EngineConfig(**(defaults | settings))))  # type: ignore[arg-type]
        if wait:
            engines[-1].wait_ready(START_TIMEOUT_S)
        return engines[-1]

    yield start
    for engine in engines:
        engine.shutdown(drain_s=0)


@pytest.fixture(scope="session")
def shared_engine(long_model: Path) -> Iterator[AsyncEngine]:
    """One engine for all tests that leave it as it was."""
    config = EngineConfig(model=str(long_model), executor=FAKE_EXECUTOR, num_gpu_blocks_override=20_000)
    engine = AsyncEngine(config)
    engine.wait_ready(START_TIMEOUT_S)
    yield engine
    engine.shutdown(drain_s=0)


@pytest.fixture
def expected_text() -> Callable[..., str]:
    """What the fake model says: a pure function of prompt, seed and length."""

    def compute(prompt: str, seed: int, num_tokens: int, index: int = 0) -> str:
        key = child_seed(seed, index) & (2**64 - 1)
        state = functools.reduce(mix, prompt.encode(), 0)
        output = bytearray()
        for _ in range(num_tokens):
            output.append(32 + mix(state, key) % 95)
            state = mix(state, output[-1])
        return output.decode()

    assert compute("ab", -3, 2)[1] == chr(fake_token([*b"ab", ord(compute("ab", -3, 1))], child_seed(-3, 0)))
    return compute
