"""Stage 9: requests that are given up at random moments leave neither KV blocks nor memory behind.

About 90 s, 45 s quick. Rounds of many requests; after each the engine must hold what it held after the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import torch
from gpu_model import model_spec, random_engine
from gpu_requests import Run, items
from gpu_timing import Bench, Row

from octavo.engine import Engine

# Of a step, that somebody gives up.
_CHANCE = 0.3
# Small buffers that libraries keep for themselves once they are needed.
_TOLERATED_BYTES = 4 << 20


def run(bench: Bench) -> Iterator[Row]:
    rounds, count, longest = (2, 12, 60) if bench.is_dry else (6 if bench.mode == "full" else 3, 400, 1000)
    with random_engine(bench) as (engine, begun):
        yield begun
        first: Row = {}
        for i in range(rounds):
            held = {"round": i} | abort_at_random(engine, count, longest, model_spec(bench.is_dry).vocab_size, i)
            held |= memory(bench)
            first = first or held
            grown = [held[key] - first[key] for key in ("allocated_bytes", "used_bytes") if held[key] is not None]
            passed = held["used_blocks"] == 0 and all(size <= _TOLERATED_BYTES for size in grown)
            yield held | {"passed": passed}


def abort_at_random(engine: Engine, count: int, longest: int, vocab_size: int, seed: int) -> Row:
    """A round: twice as many live requests as rows, now and then one less; until nobody is left."""
    rng, run = Random(seed), Run(engine)
    lengths = [(rng.randint(1, longest), rng.randint(1, longest // 2)) for _ in range(count)]
    waiting = items(lengths, vocab_size, seed=seed)
    limit = 2 * (engine.config.max_num_seqs or count)
    while waiting or engine.has_work:
        while waiting and len(run.times) - len(run.reasons) < limit:
            run.add(waiting.pop())
        live = sorted(run.times.keys() - run.reasons.keys())
        if live and rng.random() < _CHANCE:
            engine.abort(rng.choice(live))
        run.step()
    reasons = Counter(reason.value for reason in run.reasons.values())
    return {"requests": count, **reasons, "tokens": run.num_tokens, "used_blocks": engine.stats().num_used_blocks}


def memory(bench: Bench) -> Row:
    """Of the device, in bytes: what this process's tensors hold, and what is not free to anybody. None without one."""
    if bench.is_dry:
        return {"allocated_bytes": None, "used_bytes": None}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return {"allocated_bytes": torch.cuda.memory_allocated(), "used_bytes": total - free}
