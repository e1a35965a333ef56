"""Attention of prompt chunks over a paged KV cache, on a GPU. Knows block tables; nothing of sequences or scheduling.

A query's keys are visited in tiles that start at fixed positions of its sequence, whatever else is computed: its
result depends, bit for bit, neither on its neighbours nor on how its prompt was cut. See paged_attention for the
reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels import language
from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.language import jit, next_power_of_2, tl


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """Which tokens of `query` are whose. B rows; row b's queries are the last tokens of its sequence.

    cu_seqlens_q: int32 [B + 1], row b owns tokens [cu_seqlens_q[b], cu_seqlens_q[b + 1]); the first need not be 0.
    seq_lens: int32 [B], tokens in the KV cache of row b. block_table: int32 [B, max_blocks], rows may be further apart.
    """

    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_table: Tensor


@dataclass(frozen=True, slots=True)
class _Tile:
    """How a program works: query heads x queries, keys a step, and what the compiler makes of them."""

    num_queries: int
    num_keys: int
    num_warps: int
    num_stages: int


def paged_prefill(
    query: Tensor, kv_cache: Tensor, rows: PrefillRows, spec: AttentionSpec, out: Tensor | None = None
) -> Tensor:
    """Causal attention of each query at position p over positions (p - window, p] of its sequence.

    query: [T, num_heads, head_dim], contiguous, bf16, fp16 or fp32. kv_cache: contiguous [num_blocks, 2,
    num_kv_heads, block_size, head_dim] of the same dtype or FP8 e4m3; block_size is a power of two. Softmax in fp32.
    Returns `out` ([T, num_heads, head_dim], made if None), written for the tokens of `rows` only. Not causal, attention
    is over all positions of the sequence.
    """
    out = torch.empty_like(query) if out is None else out
    assert query.is_contiguous() and kv_cache.is_contiguous() and out.is_contiguous()
    assert kv_cache.dtype in (query.dtype, torch.float8_e4m3fn)
    num_tokens, num_heads, head_dim = query.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    group = num_heads // num_kv_heads
    tile = _tile_of(head_dim, query.dtype, language.capability(query.device) // 10 == 9)
    assert group * num_kv_heads == num_heads and group <= tile.num_queries and block_size & (block_size - 1) == 0
    num_rows = rows.seq_lens.shape[0]
    # Each row begins a tile of its own: beyond the whole ones, at most one more a row.
    num_tiles = num_tokens // (tile.num_queries // group) + num_rows
    _prefill_kernel[(num_tiles * num_kv_heads,)](
        out,
        query,
        kv_cache,
        rows.cu_seqlens_q,
        rows.seq_lens,
        rows.block_table,
        rows.block_table.stride(0),
        num_rows,
        *spec.score_factors,
        spec.v_scale,
        GROUP=group,
        NUM_KV_HEADS=num_kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        PADDED_DIM=max(16, next_power_of_2(head_dim)),
        WINDOW=spec.window or 0,
        SOFT_CAPPED=spec.soft_cap is not None,
        CAUSAL=spec.causal,
        NUM_QUERIES=tile.num_queries,
        NUM_KEYS=tile.num_keys,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


def _tile_of(head_dim: int, dtype: torch.dtype, is_hopper: bool) -> _Tile:
    """By shape, type and architecture only: the number of keys a step fixes the order of additions."""
    if dtype == torch.float32:
        return _Tile(64, 32, 4, 2) if head_dim <= 64 else _Tile(32, 32, 8, 2)
    if not is_hopper:
        return _Tile(64, 32, 8, 2) if head_dim > 128 else _Tile(128, 64, 8, 3 if head_dim <= 64 else 2)
    # wgmma wants 64 queries a group of 4 warps. Up to 64 numbers two programs share a multiprocessor: the softmax of
    # one runs beside the products of the other. Beyond, the 2 x 4 warps of one program do that.
    if head_dim <= 64:
        return _Tile(128, 64, 4, 3)
    return _Tile(128, 128, 8, 3) if head_dim <= 128 else _Tile(128, 64, 8, 2)


@jit
def _tile_owner(cu_seqlens_q: tl.tensor, num_rows: tl.tensor, tile: tl.tensor, QUERIES: tl.constexpr) -> tl.tensor:
    """The row that a tile of queries belongs to, if to any. Row b's tiles begin at cu_seqlens_q[b] // QUERIES + b."""
    row = -1
    for first in range(0, num_rows, 128):
        rows = first + tl.arange(0, 128)
        begins = tl.load(cu_seqlens_q + rows, mask=rows < num_rows, other=0)
        row += tl.sum(((begins // QUERIES + rows <= tile) & (rows < num_rows)).to(tl.int32))
    return tl.maximum(row, 0)


@jit
def _query_heads(
    first: tl.tensor,
    end: tl.tensor,
    kv_head: tl.tensor,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_QUERIES: tl.constexpr,
    PADDED_DIM: tl.constexpr,
) -> tl.tensor:
    """Where the numbers of tokens [first, end) x heads of one group lie in queries and output, and which exist."""
    lanes = tl.arange(0, NUM_QUERIES)
    dims = tl.arange(0, PADDED_DIM)
    tokens = first + lanes // GROUP
    heads = tokens.to(tl.int64) * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + lanes % GROUP
    exists = (tokens < end) & (lanes < NUM_QUERIES // GROUP * GROUP)
    return heads[:, None] * HEAD_DIM + dims[None, :], exists[:, None] & (dims < HEAD_DIM)[None, :]


@jit
def _load_tile(at: tl.tensor, live: tl.tensor, MASKED: tl.constexpr, HEAD_DIM: tl.constexpr) -> tl.tensor:
    """One key or value a row, zeros beyond its numbers and, if MASKED, for rows that are not live."""
    dims = tl.arange(0, at.shape[1])
    if MASKED:
        tile = tl.load(at, mask=live[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    elif at.shape[1] > HEAD_DIM:
        tile = tl.load(at, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    else:
        tile = tl.load(at)
    return tile


@jit
def _operand(tile: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """A tile of the cache in the queries' type."""
    if tile.dtype != dtype:
        # FP8 straight to bf16 is one conversion a number, at an eighth of the rate.
        tile = tile.to(tl.float32).to(dtype) if dtype == tl.bfloat16 else tile.to(dtype)
    return tile


@jit
def _attend(
    maximum: tl.tensor,
    total: tl.tensor,
    weighted: tl.tensor,
    query: tl.tensor,
    kv_cache: tl.tensor,
    block_table: tl.tensor,
    oldest_position: tl.tensor,
    oldest: tl.tensor,
    seq_len: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    cap_factor: tl.tensor,
    factor: tl.tensor,
    GROUP: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
    CAUSAL: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Adds the tiles of keys [begin, end) to the running softmax; unless MASKED, every query sees all of them.

    Both kinds do the same arithmetic to the keys that a query sees, and nothing to its state for those it does not.
    """
    offsets = tl.arange(0, NUM_KEYS)
    dims = tl.arange(0, query.shape[1])
    last_block = (seq_len - 1) // BLOCK_SIZE
    first_blocks = tl.maximum(begin * NUM_KEYS + offsets, oldest) // BLOCK_SIZE
    next_blocks = tl.load(block_table + tl.minimum(first_blocks, last_block))
    for tile in range(begin, end):
        keys = tile * NUM_KEYS + offsets
        blocks = next_blocks
        # A step ahead and never under a mask: else the addresses of the copies wait for it, and the compiler
        # serialises the matrix products.
        next_blocks = tl.load(block_table + tl.minimum((keys + NUM_KEYS).to(tl.uint32) // BLOCK_SIZE, last_block))
        slots = blocks.to(tl.int64) * BLOCK_STRIDE + (keys.to(tl.uint32) % BLOCK_SIZE).to(tl.int32) * HEAD_DIM
        at = kv_cache + slots[:, None] + dims[None, :]
        live = (keys >= oldest) & (keys < seq_len)
        key = _operand(_load_tile(at, live, False, HEAD_DIM), query.dtype)
        # 0 x NaN is NaN: values that nobody sees may be anything.
        value = _operand(_load_tile(at + BLOCK_STRIDE // 2, live, MASKED, HEAD_DIM), query.dtype)
        scores = tl.dot(query, tl.trans(key), input_precision="tf32x3")
        if SOFT_CAPPED:
            scores = 1.0 - 2.0 / (tl.exp2(scores * cap_factor) + 1.0)
        if MASKED:
            positions = oldest_position + tl.arange(0, query.shape[0]) // GROUP
            seen = keys[None, :] <= positions[:, None] if CAUSAL else live[None, :]
            if WINDOW:
                seen = seen & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1) * factor)
        reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum) if MASKED else new_maximum
        weights = tl.exp2(tl.fma(scores, factor, -reference[:, None]))
        decay = tl.exp2(maximum - reference)
        total = total * decay + tl.sum(weights, 1)
        weighted = tl.dot(weights.to(query.dtype), value, weighted * decay[:, None], input_precision="tf32x3")
        maximum = new_maximum
    return maximum, total, weighted


# Rows may begin anywhere in a batch's tables: how these are aligned must not make another compiled kernel.
@jit(do_not_specialize=["cu_seqlens_q", "seq_lens", "block_table", "block_table_stride", "num_rows"])
def _prefill_kernel(
    output: tl.tensor,
    query: tl.tensor,
    kv_cache: tl.tensor,
    cu_seqlens_q: tl.tensor,
    seq_lens: tl.tensor,
    block_table: tl.tensor,
    block_table_stride: tl.tensor,
    num_rows: tl.tensor,
    cap_factor: tl.tensor,
    factor: tl.tensor,
    v_scale: tl.tensor,
    GROUP: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
    CAUSAL: tl.constexpr,
    NUM_QUERIES: tl.constexpr,
    NUM_KEYS: tl.constexpr,
) -> None:
    """One program: NUM_QUERIES // GROUP tokens of a row x all query heads of one key-value head.

    its keys    oldest ... whole_begin ........... whole_end ... newest_position
    in tiles    [ masked: the  )[ seen by every query )[ masked: the )
                [ window's edge)[                     )[ diagonal    )
    """
    TOKENS: tl.constexpr = NUM_QUERIES // GROUP
    BLOCK_STRIDE: tl.constexpr = 2 * NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    # The last tiles of a row see the most keys: they go first.
    tile = tl.num_programs(0) // NUM_KV_HEADS - 1 - tl.program_id(0) // NUM_KV_HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    row = _tile_owner(cu_seqlens_q, num_rows, tile, TOKENS)
    begin, end = tl.load(cu_seqlens_q + row), tl.load(cu_seqlens_q + row + 1)
    first = begin + (tile - begin // TOKENS - row) * TOKENS
    if (first < begin) | (first >= end):
        return
    seq_len = tl.load(seq_lens + row)
    at, exists = _query_heads(first, end, kv_head, GROUP, NUM_KV_HEADS, HEAD_DIM, NUM_QUERIES, PADDED_DIM)
    queries = tl.load(query + at, mask=exists, other=0.0)

    oldest_position = first + seq_len - end
    newest_position = tl.minimum(oldest_position + TOKENS, seq_len) - 1
    oldest = 0
    whole_begin = 0
    whole_end = (oldest_position + 1) // NUM_KEYS
    if not CAUSAL:
        newest_position = seq_len - 1
        whole_end = seq_len // NUM_KEYS
    last = tl.cdiv(newest_position + 1, NUM_KEYS)
    kv_cache += kv_head * (BLOCK_SIZE * HEAD_DIM)
    block_table += row.to(tl.int64) * block_table_stride
    maximum = tl.full((NUM_QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((NUM_QUERIES,), tl.float32)
    weighted = tl.zeros((NUM_QUERIES, PADDED_DIM), tl.float32)
    if WINDOW:
        oldest = tl.maximum(oldest_position - WINDOW + 1, 0)
        whole_begin = tl.minimum(tl.cdiv(tl.maximum(newest_position - WINDOW + 1, 0), NUM_KEYS), last)
        maximum, total, weighted = _attend(
            maximum, total, weighted, queries, kv_cache, block_table, oldest_position, oldest, seq_len,
            oldest // NUM_KEYS, whole_begin, cap_factor, factor,
            GROUP, BLOCK_STRIDE, BLOCK_SIZE, HEAD_DIM, WINDOW, SOFT_CAPPED, CAUSAL, NUM_KEYS, True,
        )  # fmt: skip
    whole_end = tl.maximum(whole_begin, whole_end)
    maximum, total, weighted = _attend(
        maximum, total, weighted, queries, kv_cache, block_table, oldest_position, oldest, seq_len,
        whole_begin, whole_end, cap_factor, factor,
        GROUP, BLOCK_STRIDE, BLOCK_SIZE, HEAD_DIM, WINDOW, SOFT_CAPPED, CAUSAL, NUM_KEYS, False,
    )  # fmt: skip
    maximum, total, weighted = _attend(
        maximum, total, weighted, queries, kv_cache, block_table, oldest_position, oldest, seq_len,
        whole_end, last, cap_factor, factor,
        GROUP, BLOCK_STRIDE, BLOCK_SIZE, HEAD_DIM, WINDOW, SOFT_CAPPED, CAUSAL, NUM_KEYS, True,
    )  # fmt: skip
    attended = weighted * (v_scale / total)[:, None]
    # Read again, lest the addresses take registers all the while.
    end = tl.load(cu_seqlens_q + row + 1)
    at, exists = _query_heads(first, end, kv_head, GROUP, NUM_KV_HEADS, HEAD_DIM, NUM_QUERIES, PADDED_DIM)
    tl.store(output + at, attended.to(output.dtype.element_ty), mask=exists)
