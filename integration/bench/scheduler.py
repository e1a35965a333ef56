"""The scheduler alone: how long one step of 256 running sequences takes without a model. Prints a line and JSON.

A step is Engine.step with an executor that computes nothing: schedule, and update with one token a sequence.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import chain
from statistics import fmean, median
from time import perf_counter

from octavo import bench
from octavo.config import EngineConfig
from octavo.core.step import Executor, ModelRunnerOutput, SchedulerOutput
from octavo.engine import Engine
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams

BLOCK_SIZE = 16
NUM_PROMPT_TOKENS = 16

Create = Callable[[int, EngineConfig], Executor]


class NullExecutor:
    """An Executor that computes nothing: every row gets the same token, at once. Only for prompts in one chunk."""

    num_fallbacks = 0

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        return ModelRunnerOutput(step.step_id, [[1] for _ in step.rows])

    def shutdown(self) -> None:
        pass


def null_executor(num_blocks: int, config: EngineConfig) -> Executor:
    return NullExecutor(num_blocks)


def loaded_engine(num_running: int, num_steps: int, create: Create = null_executor) -> Engine:
    """An engine with `num_running` sequences that run for `num_steps` steps and longer."""
    num_tokens = NUM_PROMPT_TOKENS + num_steps + 4
    config = EngineConfig(
        block_size=BLOCK_SIZE,
        max_model_len=num_tokens,
        max_num_seqs=num_running,
        max_num_batched_tokens=num_running * NUM_PROMPT_TOKENS,
    )
    num_blocks = num_running * (num_tokens // BLOCK_SIZE + 1)
    engine = Engine(config, create(num_blocks + num_blocks // 50 + 2, config))
    for i in range(num_running):
        engine.add_request(
            EngineRequest(
                request_id=str(i),
                prompt_token_ids=[i % 97 + 1] * NUM_PROMPT_TOKENS,
                params=SamplingParams(temperature=0, max_tokens=None, ignore_eos=True),
                seed=0,
                cache_salt=str(i),
            )
        )
    engine.step()
    assert engine.stats().num_requests_running == num_running
    return engine


def step_times_us(num_running: int, num_steps: int, create: Create = null_executor) -> list[float]:
    """Microseconds of each of `num_steps` steps in which every sequence makes one token."""
    engine = loaded_engine(num_running, num_steps, create)
    engine.step()  # a pipeline of two brings its first tokens now
    times = []
    for _ in range(num_steps):
        start = perf_counter()
        outputs = engine.step()
        times.append((perf_counter() - start) * 1e6)
        assert len(outputs) == num_running
    return times


def main(description: str | None = __doc__, create: Create = null_executor) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--gpu-runner", action="store_true", help="with the GPU's runner, on a device that does nothing"
    )
    args = parser.parse_args()
    runs = [step_times_us(args.running, args.steps, create) for _ in range(args.repeat)]
    # Medians: a step in which another process had the core says nothing about the scheduler.
    medians = [median(run) for run in runs]
    typical = median(medians)
    print(
        f"{args.running} running: {typical:.0f} us a step ({min(medians):.0f}..{max(medians):.0f} "
        f"over {args.repeat} runs of {args.steps} steps), {1e6 / typical:,.0f} steps/s"
    )
    found = {
        "num_running": args.running,
        "num_steps": args.steps,
        "us_per_step": {"median": typical, "low": min(medians), "high": max(medians)},
        "steps_per_s": 1e6 / typical,
        "mean_us_per_step": fmean(chain.from_iterable(runs)),
    }
    print(json.dumps(bench.environment() | found))


if __name__ == "__main__":
    main()
