"""Stage 7: stage 6's requests through transformers, on a model of the same shape and type. About 450 s, 240 s quick.

`generate` one at a time and in static batches of 16, both on samples, and its continuous batching. Ratios are to what
octavo reached in stage 6 of the same run, and are left out where it was not run before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import nan
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from gpu_continuous import ContinuousBatching, Refused
from gpu_model import DTYPE, free_memory, model_config
from gpu_offline import EVEN, MIXED, wanted
from gpu_requests import Item
from gpu_targets import at_least
from gpu_timing import Bench, Row

# What one run of its continuous batching may take; of one that would take longer only the beginning is run.
_MOST_S, _MOST_S_QUICK = 60.0, 30.0
_BEGINNINGS = (4, 20)


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to use `generate`. sample: how many batches of each workload, neighbours in each."""

    title: str
    batch_size: int
    sample: dict[str, int]
    least_ratio: float | None = None


ONE = Peer("one at a time", 1, {EVEN: 2, MIXED: 4}, least_ratio=24.0)
STATIC = Peer("static batches of 16", 16, {EVEN: 1, MIXED: 2})


def run(bench: Bench) -> Iterator[Row]:
    if find_spec("transformers") is None:
        yield {"skipped": "transformers is not installed"}
        return
    free_memory(bench)
    yield from through_transformers(bench, llama(bench))
    free_memory(bench)


def through_transformers(bench: Bench, model: Any) -> Iterator[Row]:
    yield from generated(bench, model, ONE)
    for name in (EVEN, MIXED):
        label = {"workload": name, "peer": "continuous batching"}
        yield bench.guarded(label, lambda n=name: continuous(bench, model, n))
    # Last: it has no target.
    yield from generated(bench, model, STATIC)


def generated(bench: Bench, model: Any, peer: Peer) -> Iterator[Row]:
    # A short one first: what is made at first use has been made.
    generate(model, [Item(list(range(40)), 4)] * peer.batch_size)
    for name in (EVEN, MIXED):
        label = {"workload": name, "peer": peer.title}
        yield bench.guarded(label, lambda n=name: sampled(bench, model, peer, n))


@torch.inference_mode(False)
@torch.no_grad()
def llama(bench: Bench) -> Any:
    """transformers' own class, random numbers, on the device."""
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = LlamaConfig(**{key: value for key, value in model_config(bench.is_dry).items() if key != "architectures"})
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def sampled(bench: Bench, model: Any, peer: Peer, name: str) -> Row:
    """Batches from all over the workload; their rate is their tokens over their time."""
    requests = wanted(bench, name, 0)
    batches = [requests[first : first + peer.batch_size] for first in range(0, len(requests), peer.batch_size)]
    count = min(len(batches), peer.sample[name] if bench.mode == "full" else -(-peer.sample[name] // 2))
    chosen = [batches[i * len(batches) // count] for i in range(count)]
    begin = perf_counter()
    for batch in chosen:
        generate(model, batch)
    seconds = nan if bench.is_dry else perf_counter() - begin
    rate = sum(item.num_output_tokens for batch in chosen for item in batch) / seconds
    row = {"sample": f"{sum(map(len, chosen))} of {len(requests)}", "s": seconds, "output_tokens_per_s": rate}
    return row | compared(bench, name, rate, peer.least_ratio)


def compared(bench: Bench, name: str, rate: float, least: float | None) -> Row:
    """How many times as many tokens a second octavo's engine brought of the same workload."""
    rates = [row["median_output_tokens_per_s"] for row in bench.rows_of("6") if row.get("workload") == name
             and row.get("median_output_tokens_per_s") is not None]  # fmt: skip
    ratio = (rates[-1] if rates else nan) / rate
    return {"octavo_is": ratio} | (at_least(ratio, least) if least else {})


@torch.inference_mode(False)
@torch.no_grad()
def generate(model: Any, requests: Sequence[Item]) -> None:
    """One batch, padded on the left, to its longest output. Raises RuntimeError if tokens are missing."""
    from transformers import GenerationConfig

    width = max(len(item.prompt_token_ids) for item in requests)
    most = max(item.num_output_tokens for item in requests)
    token_ids = torch.zeros((len(requests), width), dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    for row, item in enumerate(requests):
        token_ids[row, width - len(item.prompt_token_ids) :] = torch.tensor(item.prompt_token_ids)
        mask[row, width - len(item.prompt_token_ids) :] = 1
    greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=None, pad_token_id=0)
    token_ids, mask = token_ids.to(model.device), mask.to(model.device)
    output = model.generate(input_ids=token_ids, attention_mask=mask, generation_config=greedy).cpu()
    if output.shape != (len(requests), width + most):
        raise RuntimeError(f"generate brought {tuple(output.shape)}")


def continuous(bench: Bench, model: Any, name: str) -> Row:
    """All requests. Where that would take too long, the first tokens of all, and the rest at the pace of those: later
    ones have longer contexts, so that the time found is too short, not too long."""
    requests, most_s = wanted(bench, name, 0), _MOST_S if bench.mode == "full" else _MOST_S_QUICK
    mean = fmean(item.num_output_tokens for item in requests)
    try:
        # Its own choice of sizes, but of a whole CPU's memory.
        sizes = {"num_blocks": 16, "max_batch_tokens": 128} if bench.is_dry else {}
        with ContinuousBatching(model, requests, **sizes) as batching:
            few, more = (min(each, int(mean)) for each in _BEGINNINGS)
            # What is made at first use. Other prompts each time, lest it finds them in its cache.
            batching.run(wanted(bench, name, 1)[:4], 2)
            times = [batching.run(wanted(bench, name, i), most) for i, most in ((2, few), (3, more))]
            pace = (times[1] - times[0]) / max(1, more - few)
            estimate_s = times[0] + pace * (mean - few)
            is_whole = bench.is_dry or estimate_s <= most_s
            seconds = batching.run(requests, None) if is_whole else estimate_s
    except Refused as refused:
        return {"skipped": str(refused)[:300]}
    seconds = nan if bench.is_dry else seconds
    rate = sum(item.num_output_tokens for item in requests) / seconds
    sample = "all" if is_whole else f"the first {more} tokens of each"
    row = {"sample": sample, "s": seconds, "output_tokens_per_s": rate, "attention": batching.attention}
    return row | compared(bench, name, rate, 2.0)
