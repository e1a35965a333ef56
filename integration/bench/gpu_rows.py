"""Stage 3b: how fast row-wise kernels are at Llama-3.1-8B's widths, as a fraction of the copy bandwidth.

Bytes: every input read once, every output written once. Beside them what PyTorch's own operators take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from gpu_timing import Bench, Call, Row
from torch import Tensor
from torch.nn import functional

from octavo.kernels.embedding import embedding_gpu
from octavo.kernels.kv_write_form import WriteForm
from octavo.kernels.paged_attention import AttentionMetadata
from octavo.kernels.rms_norm import FP8, rms_norm_fp8_gpu, rms_norm_gpu
from octavo.kernels.rope_kv_write_gpu import rope_kv_write_gpu
from octavo.kernels.silu_and_mul import silu_and_mul_gpu

NUM_TOKENS = (1, 64, 256, 8192)
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Widths:
    """Of a model. The interpreter gets another one."""

    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 128256


@dataclass(frozen=True, slots=True)
class Work:
    """One set of data: the kernel's call, its bytes, and the same in plain PyTorch (None: no such operator)."""

    call: Call
    num_bytes: int
    peer: Call | None = None


def run(bench: Bench) -> Iterator[Row]:
    widths = Widths(32, 24, 4, 2, 16, 40) if bench.is_dry else Widths()
    for num_tokens in bench.pick(NUM_TOKENS, [2]):
        for make in (norm, added_norm, norm_to_fp8, silu, embed, rope, rope_to_fp8):
            label = {"operation": make.__name__, "tokens": num_tokens}
            yield bench.guarded(label, lambda m=make, n=num_tokens: measure(bench, lambda: m(bench, widths, n)))


def measure(bench: Bench, make: Callable[[], Work]) -> Row:
    first = make()
    works = [first, *(make() for _ in range(bench.num_sets(first.num_bytes) - 1))]
    timing = bench.time([work.call for work in works])
    row = timing.columns | {"bytes": first.num_bytes, "flops": 0}
    row["of_copy"] = first.num_bytes / timing.us * 1e6 / bench.copy_bytes_per_s
    peers = [work.peer for work in works if work.peer is not None]
    return row | (bench.peer("torch", timing, peers) if peers else {})


def norm(bench: Bench, widths: Widths, num_tokens: int) -> Work:
    x, weight = bench.random(num_tokens, widths.hidden), bench.random(widths.hidden)
    return Work(
        lambda: rms_norm_gpu(x, None, weight, EPS),
        2 * x.nbytes + weight.nbytes,
        lambda: functional.rms_norm(x, (widths.hidden,), weight, EPS),
    )


def _add_and_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    residual += x
    return functional.rms_norm(residual, weight.shape, weight, EPS)


def added_norm(bench: Bench, widths: Widths, num_tokens: int) -> Work:
    # Small: it is added again and again.
    x, weight = bench.random(num_tokens, widths.hidden) * 1e-3, bench.random(widths.hidden)
    residual = bench.random(num_tokens, widths.hidden)
    return Work(
        lambda: rms_norm_gpu(x, residual, weight, EPS),
        4 * x.nbytes + weight.nbytes,
        lambda: _add_and_norm(x, residual, weight),
    )


def norm_to_fp8(bench: Bench, widths: Widths, num_tokens: int) -> Work:
    """With the residual's addition and a scale a row."""
    x, weight = bench.random(num_tokens, widths.hidden) * 1e-3, bench.random(widths.hidden)
    residual = bench.random(num_tokens, widths.hidden)

    def in_torch() -> Tensor:
        wide = _add_and_norm(x, residual, weight).float()
        scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
        return (wide / scale).to(FP8)

    num_bytes = 3 * x.nbytes + x.numel() + 4 * num_tokens + weight.nbytes
    return Work(lambda: rms_norm_fp8_gpu(x, residual, weight, EPS, None), num_bytes, in_torch)


def silu(bench: Bench, widths: Widths, num_tokens: int) -> Work:
    gate_up = bench.random(num_tokens, 2 * widths.intermediate)

    def in_torch() -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate) * up

    return Work(lambda: silu_and_mul_gpu(gate_up), gate_up.nbytes * 3 // 2, in_torch)


def embed(bench: Bench, widths: Widths, num_tokens: int) -> Work:
    """Ids of the host and of the device, half and half; PyTorch gets the host's only."""
    table = _table(bench.device, widths)
    ids = torch.randint(widths.vocab_size, (num_tokens,), device=bench.device)
    sampled = torch.randint(widths.vocab_size, (num_tokens,), device=bench.device)
    mixed = torch.where(torch.arange(num_tokens, device=bench.device) % 2 == 0, -1 - ids % num_tokens, ids)
    num_bytes = 2 * num_tokens * widths.hidden * table.element_size() + ids.nbytes
    return Work(lambda: embedding_gpu(table, mixed, sampled), num_bytes, lambda: functional.embedding(ids, table))


@cache
def _table(device: torch.device, widths: Widths) -> Tensor:
    """One for all sets: 1 GB."""
    return torch.empty(widths.vocab_size, widths.hidden, dtype=torch.bfloat16, device=device).normal_()


def rope(bench: Bench, widths: Widths, num_tokens: int) -> Work:
    return _rope(bench, widths, num_tokens, torch.bfloat16)


def rope_to_fp8(bench: Bench, widths: Widths, num_tokens: int) -> Work:
    return _rope(bench, widths, num_tokens, FP8)


def _rope(bench: Bench, widths: Widths, num_tokens: int, dtype: torch.dtype) -> Work:
    """Tokens of prompts: neighbours lie in neighbouring slots. Angles are read from positions anywhere below 8k."""
    block_size, num_positions = 16, 64 if bench.is_dry else 8192
    qkv = bench.random(num_tokens, (widths.heads + 2 * widths.kv_heads) * widths.head_dim)
    angles = bench.random(num_positions, 2, widths.head_dim // 2, dtype=torch.float32)
    positions = torch.randint(num_positions, (num_tokens,), device=bench.device)
    num_blocks = -(-num_tokens // block_size) + 1
    shape = (num_blocks, 2, widths.kv_heads, block_size, widths.head_dim)
    cache = torch.zeros(shape, dtype=dtype, device=bench.device)
    slots = torch.arange(num_tokens, device=bench.device) + block_size
    nothing = torch.empty(0, dtype=torch.int32, device=bench.device)
    metadata = AttentionMetadata(nothing, nothing, nothing, slots, 1, 1)
    form = WriteForm(None, 0.5, 0.25) if dtype == FP8 else WriteForm()
    kept = num_tokens * 2 * widths.kv_heads * widths.head_dim
    queries = num_tokens * widths.heads * widths.head_dim * qkv.element_size()
    num_bytes = qkv.nbytes + queries + kept * cache.element_size() + num_tokens * widths.head_dim * 4
    return Work(lambda: rope_kv_write_gpu(qkv, positions, angles, cache, metadata, form), num_bytes)
