"""Attention of one query a row over a paged KV cache, on a GPU. Knows block tables; nothing of sequences.

Time is that of reading the KV once: 2 * num_kv_heads * head_dim * itemsize bytes a token. Queries and output are below
2 % of that from 256 tokens on (bf16, 4 query heads a KV head); what splitting adds, CHUNK_SIZE says. A row's result
does not depend, bit for bit, on its neighbours, their number, or where its blocks lie. Reference: paged_attention's.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.decode_plan import DecodeScratch
from octavo.kernels.language import jit, next_power_of_2, tl

# Programs of each kernel a multiprocessor: as many as registers (168 each, if it is three) and shared memory let run
# beside each other, so that the copies of some are in flight while others compute.
ATTEND_PROGRAMS = 3
COMBINE_PROGRAMS = 10


def paged_decode(
    query: Tensor,
    kv_cache: Tensor,
    block_table: Tensor,
    scratch: DecodeScratch,
    spec: AttentionSpec,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of row b's query over the last spec.window of its sequence's positions.

    query: [B, num_heads, head_dim], contiguous, bf16, fp16 or fp32. kv_cache: contiguous [num_blocks, 2, num_kv_heads,
    block_size, head_dim] of the same dtype or FP8 e4m3; block_size is a power of two. block_table: int32
    [B, max_blocks], rows may be further apart; entries outside the window are never used. scratch: overwritten;
    `plan_decode` has written its plan from the rows' lengths. Returns `out` ([B, num_heads, head_dim], made if None),
    zero for rows of length 0. Nothing here depends on lengths: the two launches can be captured in a graph.
    """
    out = torch.empty_like(query) if out is None else out
    assert query.is_contiguous() and kv_cache.is_contiguous() and out.is_contiguous()
    assert kv_cache.dtype in (query.dtype, torch.float8_e4m3fn) and block_table.dtype == torch.int32
    num_heads, head_dim = query.shape[1:]
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    assert num_heads % num_kv_heads == 0 and block_size & (block_size - 1) == 0 and block_table.stride(1) == 1
    plan = scratch.plans[spec.window]
    num_sms = _num_sms(query.device)
    padded_dim = max(16, next_power_of_2(head_dim))
    _attend_units[(ATTEND_PROGRAMS * num_sms,)](
        out,
        scratch.partial_output,
        scratch.partial_lse,
        query,
        kv_cache,
        block_table,
        plan.counts,
        plan.units,
        block_table.stride(0),
        *spec.score_factors,
        spec.v_scale,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        PADDED_GROUP=max(16, next_power_of_2(num_heads // num_kv_heads)),
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        BLOCK_SIZE=block_size,
        NUM_KEYS=_num_keys(padded_dim, query.dtype),
        SOFT_CAPPED=spec.soft_cap is not None,
        num_warps=4,
        # Two steps of 16-bit keys and values are on their way, or three of half the size.
        num_stages=4 if kv_cache.element_size() == 1 else 3,
        # Else the compiler takes so many for the widest heads that only two programs fit beside each other.
        maxnreg=168 if padded_dim == 256 and query.element_size() == 2 else None,
    )
    _combine_slots[(COMBINE_PROGRAMS * num_sms,)](
        out,
        scratch.partial_output,
        scratch.partial_lse,
        plan.counts,
        plan.combined,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        PADDED_DIM=padded_dim,
        NUM_SLOTS=2048 // padded_dim,
        num_warps=2,
    )
    return out


def _num_keys(padded_dim: int, dtype: torch.dtype) -> int:
    """Keys a step, by shape and type only: their number fixes the order of additions.

    A step's keys are 16 KB in bf16: the keys and values of two steps fit into shared memory three times.
    """
    return max(16, min(128, 8192 // padded_dim) // (2 if dtype == torch.float32 else 1))


@cache
def _num_sms(device: torch.device) -> int:
    """Multiprocessors; where nothing is launched on a GPU, as few as make every program do several units."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@jit(do_not_specialize=["block_table_stride"])
def _attend_units(
    output: tl.tensor,
    partial_output: tl.tensor,
    partial_lse: tl.tensor,
    query: tl.tensor,
    kv_cache: tl.tensor,
    block_table: tl.tensor,
    counts: tl.tensor,
    units: tl.tensor,
    block_table_stride: tl.tensor,
    cap_factor: tl.tensor,
    factor: tl.tensor,
    v_scale: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_KEYS: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
) -> None:
    """Each program takes every n-th of the units x key-value heads: all query heads of one over a chunk's keys."""
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    HEAD_STRIDE: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    BLOCK_STRIDE: tl.constexpr = 2 * NUM_KV_HEADS * HEAD_STRIDE
    offsets = tl.arange(0, NUM_KEYS)
    dims = tl.arange(0, PADDED_DIM)
    group = tl.arange(0, PADDED_GROUP)
    exists = (group < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    num_items = tl.load(counts) * NUM_KV_HEADS
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        unit = units + (item // NUM_KV_HEADS) * 4
        kv_head = item % NUM_KV_HEADS
        row = tl.load(unit).to(tl.int64)
        begin = tl.load(unit + 1)
        end = tl.load(unit + 2)
        heads = kv_head * GROUP + group
        numbers = heads[:, None] * HEAD_DIM + dims[None, :]
        queries = tl.load(query + row * (NUM_HEADS * HEAD_DIM) + numbers, mask=exists, other=0.0)
        if kv_cache.dtype.element_ty != queries.dtype:
            # FP8 becomes fp16 in one instruction for two numbers, exactly; bf16 takes four times as many.
            queries = queries.to(tl.float16)
        head_keys = kv_cache + kv_head * HEAD_STRIDE + dims[None, :]
        table = block_table + row * block_table_stride

        maximum = tl.full((PADDED_GROUP,), float("-inf"), tl.float32)
        total = tl.zeros((PADDED_GROUP,), tl.float32)
        weighted = tl.zeros((PADDED_GROUP, PADDED_DIM), tl.float32)
        first_read = tl.minimum(begin + offsets, end - 1)
        next_blocks = tl.load(table + first_read.to(tl.uint32) // BLOCK_SIZE)
        # Every step has a key that counts: no maximum stays -inf.
        for start in range(begin, end, NUM_KEYS):
            positions = start + offsets
            live = positions < end
            slots = next_blocks.to(tl.int64) * BLOCK_STRIDE + (positions & (BLOCK_SIZE - 1)) * HEAD_DIM
            # A step ahead and without a mask: else the copies' addresses would wait for it.
            next_read = tl.minimum(positions + NUM_KEYS, end - 1)
            next_blocks = tl.load(table + next_read.to(tl.uint32) // BLOCK_SIZE)
            at = head_keys + slots[:, None]
            # What lies behind the end may be NaN, and 0 x NaN is NaN.
            readable = live[:, None] & (dims < HEAD_DIM)[None, :]
            keys = tl.load(at, mask=readable, other=0.0).to(queries.dtype)
            values = tl.load(at + NUM_KV_HEADS * HEAD_STRIDE, mask=readable, other=0.0).to(queries.dtype)
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
            if SOFT_CAPPED:
                scores = 1.0 - 2.0 / (tl.exp2(scores * cap_factor) + 1.0)
            scores = tl.where(live[None, :], scores, float("-inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, 1) * factor)
            weights = tl.exp2(tl.fma(scores, factor, -new_maximum[:, None]))
            decay = tl.exp2(maximum - new_maximum)
            total = total * decay + tl.sum(weights, 1)
            weighted = tl.dot(weights.to(queries.dtype), values, weighted * decay[:, None], input_precision="ieee")
            maximum = new_maximum

        attended = weighted * (v_scale / total)[:, None]
        # Read only now, lest it takes registers all the while.
        slot = tl.load(unit + 3).to(tl.int64)
        if slot < 0:
            target = output + row * (NUM_HEADS * HEAD_DIM) + numbers
            tl.store(target, attended.to(output.dtype.element_ty), mask=exists)
        else:
            tl.store(partial_output + slot * (NUM_HEADS * HEAD_DIM) + numbers, attended, mask=exists)
            tl.store(partial_lse + slot * NUM_HEADS + heads, maximum + tl.log2(total), mask=group < GROUP)


@jit
def _combine_slots(
    output: tl.tensor,
    partial_output: tl.tensor,
    partial_lse: tl.tensor,
    counts: tl.tensor,
    combined: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
) -> None:
    """Each program takes every n-th of the combined rows x heads: its partial results, in order, become the output."""
    offsets = tl.arange(0, NUM_SLOTS)
    dims = tl.arange(0, PADDED_DIM)
    num_items = tl.load(counts + 1) * NUM_HEADS
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        entry = combined + (item // NUM_HEADS) * 4
        head = item % NUM_HEADS
        row = tl.load(entry).to(tl.int64)
        first = tl.load(entry + 1).to(tl.int64)
        num_slots = tl.load(entry + 2)
        maximum = float("-inf")
        total = 0.0
        weighted = tl.zeros((PADDED_DIM,), tl.float32)
        for start in tl.range(0, num_slots, NUM_SLOTS, num_stages=3):
            live = start + offsets < num_slots
            slots = (first + start + offsets) * NUM_HEADS + head
            readable = live[:, None] & (dims < HEAD_DIM)[None, :]
            lse = tl.load(partial_lse + slots, mask=live, other=float("-inf"))
            partial = tl.load(partial_output + slots[:, None] * HEAD_DIM + dims[None, :], mask=readable, other=0.0)
            new_maximum = tl.maximum(maximum, tl.max(lse, 0))
            weights = tl.exp2(lse - new_maximum)
            decay = tl.exp2(maximum - new_maximum)
            total = total * decay + tl.sum(weights, 0)
            weighted = weighted * decay + tl.sum(weights[:, None] * partial, 0)
            maximum = new_maximum
        # A row without keys has nothing to combine: its output is zero.
        attended = tl.where(num_slots > 0, weighted / total, 0.0)
        target = output + (row * NUM_HEADS + head) * HEAD_DIM + dims
        tl.store(target, attended.to(output.dtype.element_ty), mask=dims < HEAD_DIM)
