"""Steps that are scheduled ahead of a device that returns late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from octavo.config import EngineConfig
from octavo.core.step import ModelRunnerOutput, SchedulerOutput
from octavo.engine import Engine
from octavo.errors import EngineError
from octavo.outputs import EngineOutput, FinishReason
from octavo.request import EngineRequest
from octavo.sampling_params import child_seed
from octavo.testing import FakeModelRunner, fake_token

PROMPT = [5, 6, 7, 8, 9]
WAIT_S = 20


class LateDevice(FakeModelRunner):
    """Begins a step at once, and returns it when the test says so."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size, strict=True)
        self.begun = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        self.is_lost = False

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        self.begun.release()
        assert self.allowed.acquire(timeout=WAIT_S)
        if self.is_lost:
            raise EngineError("the device is lost")
        return super().execute(step)

    def let_go(self, num_steps: int = 1_000) -> None:
        self.allowed.release(num_steps)


@pytest.fixture
def make_late() -> Iterator[Callable[..., tuple[Engine, LateDevice]]]:
    made: list[tuple[Engine, LateDevice]] = []

    def make(num_blocks: int = 64) -> tuple[Engine, LateDevice]:
        config = EngineConfig(
            block_size=4, max_model_len=64, max_num_seqs=4, max_num_batched_tokens=32, async_scheduling=True
        )
        device = LateDevice(num_blocks, config.block_size)
        made.append((Engine(config, device), device))
        return made[-1]

    yield make
    for engine, device in made:
        device.let_go()
        engine.shutdown()


def drain(engine: Engine) -> list[EngineOutput]:
    found = []
    while engine.has_work:
        found += engine.step()
    return found


def alone(prompt: list[int], num_tokens: int, seed: int = 7) -> list[int]:
    known = list(prompt)
    for _ in range(num_tokens):
        known.append(fake_token(known, child_seed(seed, 0)))
    return known[len(prompt) :]


def tokens_of(outputs: list[EngineOutput], request_id: str) -> list[int]:
    return [token_id for output in outputs if output.request_id == request_id for token_id in output.token_ids]


def test_the_next_step_is_scheduled_while_the_device_computes(
    make_late: Callable[..., tuple[Engine, LateDevice]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, device = make_late()
    engine.add_request(make_request("a", PROMPT, max_tokens=3))
    assert engine.step() == []
    assert device.begun.acquire(timeout=WAIT_S)
    assert engine.scheduler.num_in_flight == 1
    device.let_go(1)
    assert tokens_of(engine.step(), "a") == alone(PROMPT, 1)
    # The second step had been submitted before the first one's token was known.
    assert engine.scheduler.num_in_flight == 1
    device.let_go()
    assert tokens_of(drain(engine), "a") == alone(PROMPT, 3)[1:]


def test_an_end_that_is_found_late_costs_one_step_and_no_token(
    make_late: Callable[..., tuple[Engine, LateDevice]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, device = make_late()
    device.let_go()
    expected = alone(PROMPT, 4)
    engine.add_request(make_request("a", PROMPT, max_tokens=50, stop_token_ids=(expected[3],)))
    outputs = drain(engine)
    assert tokens_of(outputs, "a") == expected
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert device.num_steps == 5
    assert engine.scheduler.kv.pool.num_used == 0


def test_a_request_is_aborted_while_its_step_is_computed(
    make_late: Callable[..., tuple[Engine, LateDevice]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, device = make_late()
    engine.add_request(make_request("gone", PROMPT, max_tokens=50))
    engine.add_request(make_request("stays", PROMPT[1:], max_tokens=9))
    engine.step()
    assert device.begun.acquire(timeout=WAIT_S)
    engine.abort("gone")
    assert engine.scheduler.kv.pool.num_used > 2, "blocks that the device writes to have been given away"
    device.let_go()
    outputs = drain(engine)
    assert [o.finish_reason for o in outputs if o.request_id == "gone"] == [FinishReason.CANCELLED]
    assert tokens_of(outputs, "gone") == []
    assert tokens_of(outputs, "stays") == alone(PROMPT[1:], 9)
    assert engine.scheduler.kv.pool.num_used == 0


def test_sequences_are_preempted_while_their_steps_are_computed(
    make_late: Callable[..., tuple[Engine, LateDevice]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, device = make_late(num_blocks=12)
    device.let_go()
    for i in range(4):
        engine.add_request(make_request(f"r{i}", [*PROMPT, i], max_tokens=20))
    outputs = drain(engine)
    assert engine.scheduler.num_preemptions
    for i in range(4):
        assert tokens_of(outputs, f"r{i}") == alone([*PROMPT, i], 20)
    assert engine.scheduler.kv.pool.num_used == 0


def test_what_the_device_raises_reaches_the_caller(
    make_late: Callable[..., tuple[Engine, LateDevice]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, device = make_late()
    engine.add_request(make_request("a", PROMPT))
    device.is_lost = True
    device.let_go()
    with pytest.raises(EngineError, match="the device is lost"):
        drain(engine)
