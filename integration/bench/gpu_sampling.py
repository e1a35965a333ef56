"""Stage 3c: how fast the sampler is over a vocabulary of 128k, as a fraction of the copy bandwidth.

Bytes: the logits read once, whatever is asked. Beside it the same draws from PyTorch's operators, as they are usually
written: a full sort for top-p, topk for top-k, and the same race of exponential noise for the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from gpu_timing import Bench, Row
from torch import Tensor

from octavo.kernels.sampling import SamplingScratch, sample
from octavo.kernels.sampling_tables import RowSampling, SamplingTables

BATCHES, VOCAB_SIZE = (1, 32, 128, 256), 128256
TOP_K, TOP_P, NUM_BEST = 50, 0.9, 5
NUM_PROMPT_TOKENS, NUM_TOKENS = 16, 64
# What every row of a batch asks.
ASKED: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-p": {"temperature": 0.8, "top_p": TOP_P},
    "top-k": {"temperature": 0.8, "top_k": TOP_K},
    "top-k, top-p, min-p": {"temperature": 0.8, "top_k": TOP_K, "top_p": TOP_P, "min_p": 0.02},
    "greedy, logprobs": {"temperature": 0.0, "num_best": NUM_BEST},
    "top-p, penalties": {"temperature": 0.8, "top_p": TOP_P, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
}


def run(bench: Bench) -> Iterator[Row]:
    vocab_size = 300 if bench.is_dry else VOCAB_SIZE
    dtypes = bench.pick([torch.float32, torch.bfloat16], [torch.bfloat16])
    for batch, asked, dtype in product(bench.pick(BATCHES, [2]), ASKED, dtypes):
        label = {"asked": asked, "batch": batch, "logits": str(dtype).removeprefix("torch.")}
        shape = (batch, vocab_size)
        yield bench.guarded(label, lambda a=asked, t=dtype, s=shape: measure(bench, a, t, s))


def measure(bench: Bench, asked: str, dtype: torch.dtype, shape: tuple[int, int]) -> Row:
    batch, vocab_size = shape
    tables = SamplingTables.allocate(batch, vocab_size, bench.device)
    scratch = SamplingScratch.allocate(batch, vocab_size, bench.device)
    for row in range(batch):
        rng = np.random.default_rng(row)
        token_ids = rng.integers(0, vocab_size, NUM_TOKENS).astype(np.int32)
        own = {"seed": row, "token_ids": token_ids, "num_prompt_tokens": NUM_PROMPT_TOKENS}
        tables.set_row(row, RowSampling(**own, **ASKED[asked]))
    rows = torch.arange(batch, dtype=torch.int32, device=bench.device)
    positions = torch.full((batch,), NUM_TOKENS, device=bench.device)
    num_bytes = batch * vocab_size * dtype.itemsize
    logits = [make_logits(bench, shape, dtype) for _ in range(bench.num_sets(num_bytes))]
    timing = bench.time([lambda x=each: sample(x, tables, scratch, positions, rows) for each in logits])
    row = timing.columns | {"bytes": num_bytes, "flops": 0}
    row["of_copy"] = num_bytes / timing.us * 1e6 / bench.copy_bytes_per_s
    if asked in PEERS:
        row |= bench.peer("torch", timing, [lambda x=each: PEERS[asked](x) for each in logits])
    return row


def make_logits(bench: Bench, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Normal numbers with a deviation of 2.5, and 20 tokens a row that stand out, as a model's do."""
    logits = bench.random(*shape, dtype=torch.float32) * 2.5
    likely = torch.randint(shape[1], (shape[0], 20), device=bench.device)
    logits.scatter_add_(1, likely, bench.random(*likely.shape, dtype=torch.float32).abs() * 4 + 6)
    return logits.to(dtype)


def race(weights: Tensor) -> Tensor:
    """The draw: the largest weight / exponential noise wins."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


def by_top_p(logits: Tensor) -> Tensor:
    values, ids = (logits.float() / 0.8).sort(-1, descending=True)
    weights = values.softmax(-1)
    weights = weights.masked_fill(weights.cumsum(-1) - weights > TOP_P, 0.0)
    return ids.gather(-1, race(weights)[:, None])[:, 0]


def by_top_k(logits: Tensor) -> Tensor:
    values, ids = (logits.float() / 0.8).topk(TOP_K, -1)
    return ids.gather(-1, race(values.softmax(-1))[:, None])[:, 0]


def greedy_with_logprobs(logits: Tensor) -> tuple[Tensor, ...]:
    logprobs = logits.float().log_softmax(-1)
    token_ids = logits.argmax(-1, keepdim=True)
    chosen = logprobs.gather(-1, token_ids)
    return token_ids, chosen, 1 + (logprobs > chosen).sum(-1), *logprobs.topk(NUM_BEST, -1)


PEERS: dict[str, Callable[[Tensor], object]] = {
    "greedy": lambda logits: logits.argmax(-1),
    "temperature": lambda logits: race((logits.float() / 0.8).softmax(-1)),
    "top-p": by_top_p,
    "top-k": by_top_k,
    "greedy, logprobs": greedy_with_logprobs,
}
