"""Stage 8: requests come by chance, served in real time; in the middle one prompt of 32k tokens. About 100 s, 50 quick.

The engine is stepped here, in one thread, as its own process does it; it is looked at from outside.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, nan
from random import Random
from time import perf_counter

from gpu_model import model_spec, random_engine
from gpu_requests import Item, Run, items, run_all
from gpu_targets import at_most
from gpu_timing import Bench, Row

from octavo.engine import Engine
from octavo.stats import percentile

_LATE_S = 0.02


@dataclass(frozen=True, slots=True)
class Load:
    """Poisson arrivals for `seconds`; lengths are uniform over their (low, high). `long` comes in the middle."""

    per_s: float
    seconds: float
    prompt: tuple[int, int]
    output: tuple[int, int]
    long: int

    def arrivals(self, vocab_size: int, has_long: bool) -> list[tuple[float, Item]]:
        """When each request comes, in seconds from the beginning, in order.

        With and without the long one times and lengths are the same; prompts are others, lest they be in a cache.
        """
        rng, seed = Random(0), 1 + has_long
        times, now = [], rng.expovariate(self.per_s)
        while now < self.seconds:
            times.append(now)
            now += rng.expovariate(self.per_s)
        lengths = [(rng.randint(*self.prompt), rng.randint(*self.output)) for _ in times]
        found = list(zip(times, items(lengths, vocab_size, seed), strict=True))
        if has_long:
            [long] = items([(self.long, self.output[0])], vocab_size, seed + 2)
            found.append((self.seconds / 2, long))
        return sorted(found, key=lambda arrival: arrival[0])


FULL = Load(per_s=20, seconds=30, prompt=(128, 1024), output=(64, 384), long=32768)
QUICK = Load(per_s=20, seconds=14, prompt=(128, 1024), output=(64, 384), long=32768)
DRY = Load(per_s=60, seconds=0.2, prompt=(2, 20), output=(2, 8), long=150)


@dataclass(slots=True)
class Served:
    """What came of the arrivals. `arrived`: when each request was due (perf_counter), by id; `long_id`: of the prompt
    in the middle. `late`: how many could be taken only when a step was over, and much later than due."""

    run: Run
    arrived: dict[str, float]
    long_id: str | None
    late: int = 0

    @property
    def long_window(self) -> tuple[float, float]:
        """From the long prompt's arrival until its first token."""
        if self.long_id is None:
            return inf, inf
        return self.arrived[self.long_id], self.run.times[self.long_id][0]

    def latencies(self, begin: float, end: float) -> Row:
        """Of the short requests: first tokens of those that arrived in this time, and gaps that ended in it."""
        run, short = self.run, [request_id for request_id in self.arrived if request_id != self.long_id]
        first = [run.times[r][0] - self.arrived[r] for r in short if begin <= self.arrived[r] < end]
        gaps = [gap for at, gap in run.gaps if begin <= at < end]
        row: Row = {"requests": len(first), "gaps": len(gaps)}
        for name, values in (("ttft", first), ("itl", gaps)):
            for share in (50, 99):
                row[f"{name}_p{share}_ms"] = percentile(values, share / 100) * 1e3 if values else nan
        return row | {"itl_max_ms": max(gaps, default=nan) * 1e3}


def run(bench: Bench) -> Iterator[Row]:
    load = DRY if bench.is_dry else FULL if bench.mode == "full" else QUICK
    vocab_size = model_spec(bench.is_dry).vocab_size
    with random_engine(bench) as (engine, begun):
        yield begun
        run_all(engine, items([(load.prompt[1], 4)] * 8 + [(load.long, 2)], vocab_size, seed=99))
        for has_long in (False, True):
            served = serve(engine, load.arrivals(vocab_size, has_long), load.long)
            yield from rows(bench, served)


def rows(bench: Bench, served: Served) -> Iterator[Row]:
    """Of one load: as a whole, and where there is a long prompt before it, while it is computed, and after."""
    whole = served.latencies(-inf, inf)
    if served.long_id is None:
        yield timed(bench, {"window": "without a long prompt", **whole, "late": served.late})
        return
    begin, end = served.long_window
    before, during = served.latencies(-inf, begin), served.latencies(begin, end)
    ratio = whole["itl_p99_ms"] / whole["itl_p50_ms"]
    # The stricter reading: what those feel who wait beside it, against a usual gap.
    beside = during["itl_p99_ms"] / before["itl_p50_ms"]
    yield timed(bench, {"window": "with a 32k prompt", **whole, "late": served.late}, ratio)
    yield timed(bench, {"window": "before it", **before})
    yield timed(bench, {"window": "while it is computed", **during, "long_ttft_ms": (end - begin) * 1e3}, beside)
    yield timed(bench, {"window": "after it", **served.latencies(end, inf)})


def timed(bench: Bench, row: Row, ratio: float | None = None) -> Row:
    """Of a dry run no times. `ratio` is what has a target: p99 over p50."""
    row |= {} if ratio is None else {"p99_over_p50": ratio}
    if bench.is_dry:
        row |= {key: nan for key in row if key.endswith(("_ms", "p99_over_p50"))}
    return row if ratio is None else row | at_most(row["p99_over_p50"], 2.0)


def serve(engine: Engine, arrivals: Sequence[tuple[float, Item]], long: int) -> Served:
    """In real time: whoever is due is taken before the next step; to the last token. `long`: that prompt's tokens."""
    served, waiting = Served(Run(engine), {}, None), deque(arrivals)
    begin = perf_counter()
    while waiting or engine.has_work:
        now = perf_counter()
        while waiting and begin + waiting[0][0] <= now:
            due, item = waiting.popleft()
            request_id = served.run.add(item)
            served.arrived[request_id] = begin + due
            served.late += now - begin - due > _LATE_S
            if len(item.prompt_token_ids) == long:
                served.long_id = request_id
        if engine.has_work:
            served.run.step()
        else:
            time.sleep(max(0.0, begin + waiting[0][0] - perf_counter()))
    return served
