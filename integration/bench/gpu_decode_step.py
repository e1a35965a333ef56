"""Stage 4: a decode step of the whole engine, greedy sampling and scheduling included. About 100 s, 50 s quick.

As a fraction of the serial roofline (gpu_roof.py), from the time that many steps in a row take; and how long the device
was idle between them. The first token's prompts are computed before anything is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import nan
from time import perf_counter

import gpu_idle
from gpu_model import model_spec, random_engine
from gpu_requests import Run, items
from gpu_roof import Roof
from gpu_targets import at_least, at_most
from gpu_timing import Bench, Row

from octavo.engine import Engine

BATCHES = (1, 8, 32, 64, 128, 256)
CONTEXT = 1024
_WARM, _TIMED, _PROFILED = 10, 120, 10


def run(bench: Bench) -> Iterator[Row]:
    with random_engine(bench) as (engine, begun):
        yield begun
        for batch in bench.pick(BATCHES, [2]):
            yield bench.guarded({"batch": batch}, lambda b=batch: decode(bench, engine, b))


def decode(bench: Bench, engine: Engine, batch: int) -> Row:
    """Steps of a batch whose rows have `context` tokens on average while they are timed."""
    timed, context = (4, 24) if bench.is_dry else (_TIMED if bench.mode == "full" else _TIMED // 2, CONTEXT)
    prompt = context - timed // 2 - (0 if bench.is_dry else _WARM)
    spec = model_spec(bench.is_dry)
    running = Run(engine)
    for item in items([(prompt, 2 * (timed + _PROFILED + _WARM))] * batch, spec.vocab_size, seed=batch):
        running.add(item)
    try:
        while not all(running.times.values()):
            running.step()
        steps(running, _WARM)
        seconds = steps(running, timed)
        idle = gpu_idle.by_events(bench, lambda: steps(running, timed // 2))
        idle |= gpu_idle.by_profiler(bench, lambda: steps(running, _PROFILED))
    finally:
        running.abort()
    step_s = nan if bench.is_dry else seconds / timed
    roof_s = Roof.of(bench, spec).decode_s(batch, batch * context)
    row = {"context": context, "step_ms": step_s * 1e3, "roof_ms": roof_s * 1e3, "tokens_per_s": batch / step_s}
    row |= {"of_roof": roof_s / step_s} | at_least(roof_s / step_s, 0.75, first=0.6)
    idle_target = {f"idle_{name}": value for name, value in at_most(idle["idle"], 0.03).items()}
    return row | idle | idle_target | {"fallbacks": engine.stats().fallbacks_total}


def steps(running: Run, count: int) -> float:
    """Seconds of so many steps. Raises RuntimeError if a row brought no token in one."""
    begin = perf_counter()
    found = sum(running.step() for _ in range(count))
    seconds = perf_counter() - begin
    if found != count * len(running.times):
        raise RuntimeError(f"{found} tokens in {count} steps of {len(running.times)} rows")
    return seconds
