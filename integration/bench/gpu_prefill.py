"""Stage 5: prompt tokens a second through the engine, as a fraction of the measured matmul rate. About 60 s, 30 quick.

FLOPs: two a weight and token, causal attention, one row of logits a prompt. No prompt shares a prefix with another.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from statistics import median

from gpu_model import model_spec, random_engine
from gpu_requests import items, run_all
from gpu_roof import Roof
from gpu_targets import at_least
from gpu_timing import Bench, Row

from octavo.engine import Engine

# Tokens a prompt, prompts at once.
PROMPTS = ((1024, 64), (8192, 16), (1024, 1), (8192, 1))
_REPEAT = 3


def run(bench: Bench) -> Iterator[Row]:
    with random_engine(bench) as (engine, begun):
        yield begun
        # All of them in a quick run too: the first two are the ones that have a target.
        for length, count in [(40, 3)] if bench.is_dry else PROMPTS:
            label = {"tokens": length, "prompts": count}
            yield bench.guarded(label, lambda n=length, c=count: prefill(bench, engine, n, c))


def prefill(bench: Bench, engine: Engine, length: int, count: int) -> Row:
    spec = model_spec(bench.is_dry)
    times = []
    # Once more than what counts: shapes that are met for the first time.
    for seed in range(1 + (_REPEAT if bench.mode == "full" else 1)):
        wanted = items([(length, 1)] * count, spec.vocab_size, seed * 1000 + length + count)
        times.append(run_all(engine, wanted)[1])
    times = [nan] if bench.is_dry else times[1:]
    seconds = median(times)
    rate = count * Roof.of(bench, spec).prefill_flops(length) / seconds
    row = {"s": seconds, "low_s": min(times), "high_s": max(times), "tokens_per_s": count * length / seconds}
    row |= {"TFLOP/s": rate / 1e12, "of_matmul": rate / bench.flops_per_s}
    # One alone is no full step, and has no target.
    return row | (at_least(rate / bench.flops_per_s, 0.7) if count > 1 else {})
