"""How many tokens of prompts go beside running streams, on a clock that moves with what a step computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from octavo.config import EngineConfig
from octavo.core.step import ModelRunnerOutput, SchedulerOutput
from octavo.core.step_budget import StepBudget
from octavo.engine import Engine
from octavo.request import EngineRequest
from octavo.testing import FakeModelRunner

PLAIN_S, TOKEN_S = 0.01, 0.001


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class CostlyRunner(FakeModelRunner):
    """Takes time by the clock for every step and every token of a prompt, and remembers the steps."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(1000, 4)
        self.clock = clock
        self.steps: list[list[int]] = []

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        self.steps.append(step.num_scheduled_tokens)
        self.clock.now += PLAIN_S + TOKEN_S * sum(count for count in step.num_scheduled_tokens if count > 1)
        return super().execute(step)

    @property
    def longest_mixed(self) -> int:
        """Tokens of prompts in the fullest step that had a stream in it, of the last ten."""
        return max((sum(c for c in step if c > 1) for step in self.steps[-10:] if 1 in step), default=0)


@pytest.fixture
def engine_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Engine, CostlyRunner]]:
    def make(**settings: object) -> tuple[Engine, CostlyRunner]:
        clock = Clock()
        monkeypatch.setattr("octavo.pipeline.time", clock)
        defaults = {"block_size": 4, "max_model_len": 2000, "max_num_seqs": 8, "max_num_batched_tokens": 400}
        runner = CostlyRunner(clock)
        return Engine(EngineConfig(**(defaults | settings)), runner), runner  # type: ignore[arg-type]

    return make


def run_a_long_prompt_beside_a_stream(engine: Engine, make_request: Callable[..., EngineRequest]) -> None:
    engine.add_request(make_request("stream", [1] * 40, max_tokens=500))
    for _ in range(30):
        engine.step()
    engine.add_request(make_request("long", [2] * 1500, max_tokens=4))
    for _ in range(12):
        engine.step()


def test_a_prompt_takes_no_more_of_a_step_than_the_budget_leaves(
    engine_with: Callable[..., tuple[Engine, CostlyRunner]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, runner = engine_with(itl_budget_s=0.06)
    run_a_long_prompt_beside_a_stream(engine, make_request)
    # 60 ms less 10 ms, at 1 ms a token; the first prompt alone made a token look a little dearer.
    assert 35 <= runner.longest_mixed <= 51


def test_without_a_budget_a_step_takes_some_times_as_long_as_one_without_prompts(
    engine_with: Callable[..., tuple[Engine, CostlyRunner]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, runner = engine_with()
    run_a_long_prompt_beside_a_stream(engine, make_request)
    assert 42 <= runner.longest_mixed <= 61


def test_where_nobody_waits_a_prompt_takes_what_the_limits_leave(
    engine_with: Callable[..., tuple[Engine, CostlyRunner]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, runner = engine_with(itl_budget_s=3600.0)
    run_a_long_prompt_beside_a_stream(engine, make_request)
    assert runner.longest_mixed == 399


def test_prompts_alone_are_not_held_back(
    engine_with: Callable[..., tuple[Engine, CostlyRunner]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, runner = engine_with(itl_budget_s=0.02)
    for i in range(3):
        engine.add_request(make_request(f"r{i}", [i + 1] * 300, max_tokens=1))
    engine.step()
    engine.step()
    assert runner.steps == [[300, 100], [200, 200]]


def test_a_slowdown_is_counted_in_steps_without_prompts() -> None:
    budget = StepBudget(slowdown=2.0)
    budget.observe([100], 0.1)
    budget.observe([1, 1], 0.05)
    assert budget.num_prompt_tokens(2) == 50


def test_streams_run_alone_once_to_see_what_they_take() -> None:
    budget = StepBudget(slowdown=2.0)
    budget.observe([100], 0.1)
    budget.observe([1], 0.05)
    assert budget.num_prompt_tokens(1) == 50
    assert budget.num_prompt_tokens(40) == 0
    budget.observe([1] * 40, 0.09)
    assert budget.num_prompt_tokens(40) == pytest.approx(90, abs=1)
    assert budget.num_prompt_tokens(1) == 50


def test_prompts_that_keep_coming_let_the_streams_run_alone_now_and_then() -> None:
    budget = StepBudget(limit_s=0.1)
    budget.observe([1], 0.05)
    for _ in range(64):
        assert budget.num_prompt_tokens(1) != 0
        budget.observe([1, 100], 0.15)
    assert budget.num_prompt_tokens(1) == 0
    budget.observe([1], 0.05)
    assert budget.num_prompt_tokens(1) == pytest.approx(50, abs=1)


def test_a_hiccup_is_forgotten_with_the_next_step() -> None:
    budget = StepBudget(slowdown=2.0)
    budget.observe([100], 0.1)
    budget.observe([1], 3.0)
    budget.observe([1], 0.01)
    assert budget.num_prompt_tokens(1) == 16


def test_a_prompt_that_seems_to_cost_nothing_breaks_nothing() -> None:
    budget = StepBudget(limit_s=0.5)
    budget.observe([1], 1.0)
    for _ in range(5000):
        budget.observe([1, 100], 0.1)
        budget.observe([1], 1.0)
        assert budget.num_prompt_tokens(1) == 16


def test_without_a_stream_there_is_no_limit() -> None:
    budget = StepBudget(limit_s=0.01)
    budget.observe([100], 0.1)
    assert budget.num_prompt_tokens(0) is None


def test_a_prompt_goes_on_even_where_the_budget_is_spent() -> None:
    budget = StepBudget(limit_s=0.01)
    budget.observe([1, 1], 0.05)
    budget.observe([1, 1, 100], 0.15)
    assert budget.num_prompt_tokens(2) == 16


def test_costs_that_change_are_followed() -> None:
    budget = StepBudget(limit_s=0.11)
    for _ in range(40):
        budget.observe([1], 0.01)
        budget.observe([1, 100], 0.11)
    assert budget.num_prompt_tokens(1) == pytest.approx(100, abs=1)
    for _ in range(40):
        budget.observe([1, 100], 0.21)
    assert budget.num_prompt_tokens(1) == pytest.approx(50, abs=1)


def test_a_burst_on_a_fresh_engine_is_not_held_back_to_the_least(
    engine_with: Callable[..., tuple[Engine, CostlyRunner]], make_request: Callable[..., EngineRequest]
) -> None:
    engine, runner = engine_with(max_num_seqs=64)
    for i in range(64):
        engine.add_request(make_request(f"r{i}", [i + 1] * 100, max_tokens=30))
    while engine.has_work:
        engine.step()
    mixed = [sum(c for c in step if c > 1) for step in runner.steps if 1 in step and max(step) > 1]
    # Six and a half times 10 ms, less 10 ms, at 1 ms a token and a little more.
    assert sorted(mixed)[len(mixed) // 2] >= 40
