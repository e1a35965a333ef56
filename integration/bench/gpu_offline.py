"""Stage 6: 256 requests at once through octavo's engine, until the last token. About 200 s, 100 s quick.

Two workloads: 1024 tokens in and out, and uniformly 100 to 1024 of both. Random prompts, greedy, no end of text. Beside
it what the roofline (gpu_roof.py) would take for the same requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from random import Random
from statistics import median

from gpu_model import model_spec, random_engine
from gpu_requests import Item, items, run_all
from gpu_roof import Roof
from gpu_timing import Bench, Row

from octavo.engine import Engine

EVEN, MIXED = "256 x 1024/1024", "256 x U(100,1024)"
_REPEAT = 3


def workloads(is_dry: bool) -> dict[str, list[tuple[int, int]]]:
    """Lengths of prompt and output, by the workload's name. Those of a dry run are tiny."""
    count, low, high = (6, 2, 12) if is_dry else (256, 100, 1024)
    rng = Random(0)
    mixed = [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]
    return {EVEN: [(high, high)] * count, MIXED: mixed}


def wanted(bench: Bench, name: str, repetition: int) -> list[Item]:
    """The requests of a workload; those of another repetition have other prompts of the same lengths."""
    return items(workloads(bench.is_dry)[name], model_spec(bench.is_dry).vocab_size, seed=repetition)


def run(bench: Bench) -> Iterator[Row]:
    # As `octavo.LLM` does: a batch holds no prompt back for the sake of a stream.
    with random_engine(bench, itl_budget_s=3600.0) as (engine, begun):
        yield begun
        run_all(engine, items([(40, 4)] * 8, model_spec(bench.is_dry).vocab_size, seed=99))
        for name in workloads(bench.is_dry):
            rates = []
            for repetition in range(_REPEAT if bench.mode == "full" else 1):
                row = bench.guarded({"workload": name}, lambda n=name, r=repetition: offline(bench, engine, n, r))
                rates.append(row.get("output_tokens_per_s", nan))
                yield row
            yield {"workload": name, "median_output_tokens_per_s": median(rates), "repetitions": len(rates)}


def offline(bench: Bench, engine: Engine, name: str, repetition: int) -> Row:
    before = engine.stats()
    requests = wanted(bench, name, repetition)
    run, seconds = run_all(engine, requests)
    after = engine.stats()
    seconds = nan if bench.is_dry else seconds
    roof_s = Roof.of(bench, model_spec(bench.is_dry)).offline_s([item.lengths for item in requests])
    steps = after.steps_total - before.steps_total
    return {
        "s": seconds,
        "roof_s": roof_s,
        "of_roof": roof_s / seconds,
        "output_tokens_per_s": run.num_tokens / seconds,
        "total_tokens_per_s": (run.num_tokens + sum(len(r.prompt_token_ids) for r in requests)) / seconds,
        "steps": steps,
        "tokens_a_step": run.num_tokens / steps,
        "preemptions": after.preemptions_total - before.preemptions_total,
        "fallbacks": after.fallbacks_total,
    }
