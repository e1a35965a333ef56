"""Stages 2 and 3a: how fast attention is, with Llama-3.1-8B's heads over a paged cache in shuffled blocks.

Decode as a fraction of the copy bandwidth (bytes: the KV, read once), prefill of the matmul rate (FLOPs: causal).
Beside it PyTorch's scaled_dot_product_attention on dense keys and values of the same sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from gpu_targets import at_least
from gpu_timing import Bench, Call, Row, Timing, launching_only
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.decode_plan import DecodeCapacity, DecodeScratch, plan_decode
from octavo.kernels.paged_decode import paged_decode
from octavo.kernels.paged_prefill import PrefillRows, paged_prefill

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, LAYERS = 32, 8, 128, 16, 32
SPEC = AttentionSpec(HEAD_DIM**-0.5, k_scale=0.5, v_scale=0.25)
PLAIN_SPEC = AttentionSpec(HEAD_DIM**-0.5)
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
BLOCK_NUMBERS = 2 * KV_HEADS * BLOCK_SIZE * HEAD_DIM
BATCHES, CONTEXTS = (1, 8, 32, 64, 128, 256), (256, 1024, 8192, 32768)
# (tokens in the sequence, of which queries, rows)
CHUNKS = (
    (1024, 1024, 1), (1024, 1024, 16), (8192, 8192, 1), (8192, 8192, 4), (32768, 32768, 1),
    (8192, 2048, 1), (8192, 2048, 4), (32768, 2048, 1), (32768, 512, 1),
)  # fmt: skip
PEERS = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True, slots=True)
class Pool:
    """A cache of random numbers, and an order in which cases take its blocks. Every case takes them anew."""

    cache: Tensor
    shuffled: Tensor

    @classmethod
    def allocate(cls, bench: Bench, num_blocks: int, dtype: torch.dtype) -> Pool:
        """At most 60 % of the free memory."""
        if not bench.is_dry:
            torch.cuda.empty_cache()
            bytes_a_block = BLOCK_NUMBERS * dtype.itemsize
            num_blocks = min(num_blocks, int(torch.cuda.mem_get_info()[0] * 0.6) // bytes_a_block)
        cache = torch.empty(num_blocks, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM, dtype=dtype, device=bench.device)
        for part in cache.split(4096):
            part.copy_(bench.random(*part.shape) * 0.5)
        return cls(cache, torch.randperm(num_blocks, device=bench.device).int())

    def tables(self, lengths: Sequence[int], num_sets: int) -> list[Tensor]:
        """Block tables int32 [rows, widest] of sets that share no block."""
        counts = [-(-n // BLOCK_SIZE) for n in lengths]
        blocks = iter(self.shuffled[: num_sets * sum(counts)].split(counts * num_sets))
        tables = []
        for _ in range(num_sets):
            table = self.shuffled.new_zeros(len(counts), max(counts))
            for row, count in enumerate(counts):
                table[row, :count] = next(blocks)
            tables.append(table)
        return tables

    def dense(self, rows: int, length: int, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, KV heads, length, head_dim], the index-th of those that lie one after the other."""
        numbers = rows * KV_HEADS * length * HEAD_DIM
        keys, values = self.cache.view(-1)[2 * numbers * index : 2 * numbers * (index + 1)].split(numbers)
        return tuple(part.view(rows, KV_HEADS, length, HEAD_DIM) for part in (keys, values))


def ends(lengths: Sequence[int]) -> int:
    """Blocks that sequences of these lengths fill."""
    return sum(-(-n // BLOCK_SIZE) for n in lengths)


def mixes(bench: Bench) -> list[tuple[str, list[int]]]:
    """Name and lengths. Equal ones; one long sequence among short ones; anything between 1 and 8k."""
    if bench.is_dry:
        return [("2 x 20", [20, 20]), ("mixed", [33, 5])]
    batches, contexts = bench.pick(BATCHES, []), bench.pick(CONTEXTS, [])
    found = [(f"{batch} x {context}", [context] * batch) for batch, context in product(batches, contexts)]
    generator = torch.Generator().manual_seed(0)
    for batch in (each for each in batches if each > 1):
        found.append((f"32768 + {batch - 1} x 1024", [32768] + [1024] * (batch - 1)))
        found.append((f"{batch} x 1..8192", torch.randint(1, 8193, (batch,), generator=generator).tolist()))
    return found


def run_decode(bench: Bench) -> Iterator[Row]:
    cases = mixes(bench)
    most = max(ends(lengths) for _, lengths in cases)
    most_rows, longest = max(len(lengths) for _, lengths in cases), max(max(lengths) for _, lengths in cases)
    scratch = DecodeCapacity(most_rows, longest, HEADS, HEAD_DIM).allocate([None], bench.device)
    for dtype in (BF16, FP8):
        pool = Pool.allocate(bench, most, dtype)
        for name, lengths in cases:
            label = {"case": name, "batch": len(lengths), "kv": "fp8" if dtype == FP8 else "bf16"}
            yield bench.guarded(label, lambda n=lengths, p=pool: decode(bench, p, n, scratch))
        del pool


def decode(bench: Bench, pool: Pool, lengths: list[int], scratch: DecodeScratch) -> Row:
    """One layer's attention; the plan's share is that of one launch a step beside all layers' attention."""
    num_bytes = sum(lengths) * BLOCK_NUMBERS // BLOCK_SIZE * pool.cache.element_size()
    if ends(lengths) > len(pool.cache):
        return {"skipped": f"{num_bytes / 1e9:.0f} GB of KV do not fit"}
    num_sets = bench.num_sets(num_bytes, len(pool.cache) // ends(lengths))
    spec = PLAIN_SPEC if pool.cache.dtype == BF16 else SPEC
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
    query = bench.random(len(lengths), HEADS, HEAD_DIM)
    out = torch.empty_like(query)
    plan_decode(seq_lens, scratch)
    calls: list[Call] = [
        lambda t=table: paged_decode(query, pool.cache, t, scratch, spec, out)
        for table in pool.tables(lengths, num_sets)
    ]
    timing = bench.time(calls)
    with launching_only("_attend_units"):
        attend = bench.time(calls)
    plan = bench.time([lambda: plan_decode(seq_lens, scratch)] * (1 if bench.is_dry else 8))
    bandwidth = num_bytes / timing.us * 1e6
    row = timing.columns | {
        "bytes": num_bytes,
        "flops": 4 * HEADS * HEAD_DIM * sum(lengths),
        "TB/s": bandwidth / 1e12,
        "of_copy": bandwidth / bench.copy_bytes_per_s,
        **(at_least(bandwidth / bench.copy_bytes_per_s, 0.85) if len(lengths) >= 32 else {}),
        "combine_share": 1 - attend.us / timing.us,
        "plan_us": plan.us,
        "plan_share": plan.us / (plan.us + LAYERS * timing.us),
    }
    if pool.cache.dtype == BF16 and len(set(lengths)) == 1:
        row |= decode_peer(bench, pool, lengths, (timing, num_sets))
    return row


def decode_peer(bench: Bench, pool: Pool, lengths: list[int], own: tuple[Timing, int]) -> Row:
    timing, num_sets = own
    query = bench.random(len(lengths), HEADS, 1, HEAD_DIM)
    # Dense numbers fill no block's end: as many sets fit.
    sets = [pool.dense(len(lengths), lengths[0], i) for i in range(num_sets)]
    return peers(bench, timing, [(query, *each, False) for each in sets])


def run_prefill(bench: Bench) -> Iterator[Row]:
    cases = bench.pick(CHUNKS, [(40, 40, 1), (40, 9, 2)])
    most = max(ends([length] * rows) for length, _, rows in cases)
    for dtype in (BF16, FP8):
        pool = Pool.allocate(bench, most, dtype)
        for length, num_queries, rows in cases:
            label = {"tokens": length, "queries": num_queries, "rows": rows, "kv": "fp8" if dtype == FP8 else "bf16"}
            shape = (length, num_queries, rows)
            yield bench.guarded(label, lambda s=shape, p=pool: prefill(bench, p, *s))
        del pool


def prefill(bench: Bench, pool: Pool, length: int, num_queries: int, num_rows: int) -> Row:
    """The last queries of each row; their KV, and the prefix's, is cached."""
    if ends([length] * num_rows) > len(pool.cache):
        return {"skipped": "the KV does not fit"}
    [table] = pool.tables([length] * num_rows, 1)
    starts = torch.arange(num_rows + 1, dtype=torch.int32, device=bench.device) * num_queries
    rows = PrefillRows(starts, torch.full_like(starts[1:], length), table)
    query = bench.random(num_rows * num_queries, HEADS, HEAD_DIM)
    out = torch.empty_like(query)
    spec = PLAIN_SPEC if pool.cache.dtype == BF16 else SPEC
    # Short ones several times, lest a graph's beginning counts.
    count = 1 if bench.is_dry else max(1, min(16, 16384 // len(query)))
    timing = bench.time([lambda: paged_prefill(query, pool.cache, rows, spec, out)] * count)
    seen = sum(range(length - num_queries + 1, length + 1)) * num_rows
    flops = 4 * HEADS * HEAD_DIM * seen
    row = timing.columns | {
        "bytes": 2 * query.nbytes + length * num_rows * BLOCK_NUMBERS // BLOCK_SIZE * pool.cache.element_size(),
        "flops": flops,
        "TFLOP/s": flops / timing.us / 1e6,
        "of_matmul": flops / timing.us * 1e6 / bench.flops_per_s,
        "tokens_per_s": num_rows * num_queries / timing.us * 1e6,
    }
    # Beside a cached prefix, PyTorch's causal mask would be another one.
    if pool.cache.dtype == BF16 and num_queries == length:
        dense = query.view(num_rows, length, HEADS, HEAD_DIM).transpose(1, 2), *pool.dense(num_rows, length, 0)
        row |= peers(bench, timing, [(*dense, True)] * count)
    return row


def peers(bench: Bench, own: Timing, work: Sequence[tuple[Tensor, Tensor, Tensor, bool]]) -> Row:
    """work: queries, keys, values, and whether the mask is causal."""
    found: Row = {}
    for name, backend in PEERS.items():
        # Tensors of the CPU have neither.
        chosen = SDPBackend.MATH if bench.is_dry else backend
        found |= bench.peer(name, own, [lambda w=each, b=chosen: _dense_attention(b, *w) for each in work])
    return found


def _dense_attention(backend: SDPBackend, query: Tensor, keys: Tensor, values: Tensor, is_causal: bool) -> Tensor:
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(query, keys, values, is_causal=is_causal, enable_gqa=True)
