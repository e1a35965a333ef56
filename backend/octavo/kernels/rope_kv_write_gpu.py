"""Per-head RMSNorm, rotary embedding and KV-cache write on a GPU. See rope_kv_write for the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.kv_write_form import WriteForm
from octavo.kernels.language import jit, next_power_of_2, tl
from octavo.kernels.paged_attention import AttentionMetadata
from octavo.kernels.quantise_rows import to_fp8


def rope_kv_write_gpu(
    qkv: Tensor, positions: Tensor, table: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, form: WriteForm
) -> Tensor:
    """`rope_kv_write` and `rope_kv_write_fp8` on a GPU. A program does some heads of one token."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    num_tokens, num_heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * num_kv_heads
    slots = metadata.slot_mapping
    assert qkv.is_contiguous() and kv_cache.is_contiguous() and table.is_contiguous() and table.dtype == torch.float32
    assert positions.is_contiguous() and slots.is_contiguous() and slots.dtype == torch.int64
    query = qkv.new_empty(num_tokens, num_heads, head_dim)
    padded_half = next_power_of_2(head_dim // 2)
    # 16 bytes a thread of each half of the heads.
    heads = min(max(1, 1024 // padded_half), next_power_of_2(max(num_heads, num_kv_heads)))
    norm = form.head_norm
    _rope_kv_write_kernel[(num_tokens, -(-num_heads // heads) + -(-num_kv_heads // heads))](
        query,
        kv_cache,
        qkv,
        positions,
        slots,
        table,
        norm.query_weight if norm else None,
        norm.key_weight if norm else None,
        norm.eps if norm else 0.0,
        form.k_scale,
        form.v_scale,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        HEADS=heads,
        PADDED_HALF=padded_half,
        IS_FP8=kv_cache.element_size() == 1,
        num_warps=4,
    )
    return query


@jit
def _load_halves(at: tl.tensor, inside: tl.tensor, HALF: tl.constexpr) -> tl.tensor:
    return tl.load(at, mask=inside, other=0.0).to(tl.float32), tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)


@jit
def _norm_and_rotate(
    at: tl.tensor,
    inside: tl.tensor,
    angles: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
) -> tl.tensor:
    """Both halves of heads at `at` in fp32; normed, as the unfused norm does, if there is a weight."""
    dims = tl.arange(0, PADDED_HALF)
    exists = dims < HALF
    first, second = _load_halves(at, inside, HALF)
    cos = tl.load(angles + dims, mask=exists, other=0.0)[None, :]
    sin = tl.load(angles + HALF + dims, mask=exists, other=0.0)[None, :]
    if weight is not None:
        dtype = at.dtype.element_ty
        gains = _load_halves(weight + dims, exists, HALF)
        shrink = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)[:, None]
        first = ((first * shrink).to(dtype).to(tl.float32) * gains[0][None, :]).to(dtype).to(tl.float32)
        second = ((second * shrink).to(dtype).to(tl.float32) * gains[1][None, :]).to(dtype).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@jit
def _store(at: tl.tensor, number: tl.tensor, inside: tl.tensor, scale: tl.tensor, IS_FP8: tl.constexpr) -> None:
    if IS_FP8:
        tl.store(at, to_fp8(number, scale), mask=inside)
    else:
        tl.store(at, number.to(at.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["positions", "slots"])
def _rope_kv_write_kernel(
    query: tl.tensor,
    kv_cache: tl.tensor,
    qkv: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    table: tl.tensor,
    query_weight: tl.tensor,
    key_weight: tl.tensor,
    eps: tl.tensor,
    k_scale: tl.tensor,
    v_scale: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    IS_FP8: tl.constexpr,
) -> None:
    """The second axis counts groups of HEADS query heads, then groups of HEADS keys and their values."""
    HALF: tl.constexpr = HEAD_DIM // 2
    QUERY_GROUPS: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    dims = tl.arange(0, PADDED_HALF)[None, :]
    angles = table + tl.load(positions + token) * HEAD_DIM
    token_qkv = qkv + token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    if group < QUERY_GROUPS:
        heads = (group * HEADS + tl.arange(0, HEADS))[:, None]
        inside = (heads < NUM_HEADS) & (dims < HALF)
        at = heads * HEAD_DIM + dims
        first, second = _norm_and_rotate(token_qkv + at, inside, angles, query_weight, eps, HALF, PADDED_HALF)
        rotated = query + token * (NUM_HEADS * HEAD_DIM) + at
        _store(rotated, first, inside, 1.0, False)
        _store(rotated + HALF, second, inside, 1.0, False)
    else:
        slot = tl.load(slots + token)
        heads = ((group - QUERY_GROUPS) * HEADS + tl.arange(0, HEADS))[:, None]
        inside = (heads < NUM_KV_HEADS) & (dims < HALF)
        keys = token_qkv + NUM_HEADS * HEAD_DIM + heads * HEAD_DIM + dims
        first, second = _norm_and_rotate(keys, inside, angles, key_weight, eps, HALF, PADDED_HALF)
        cached = kv_cache + slot // BLOCK_SIZE * (2 * NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM)
        cached += (heads * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + dims
        _store(cached, first, inside, k_scale, IS_FP8)
        _store(cached + HALF, second, inside, k_scale, IS_FP8)
        first, second = _load_halves(keys + NUM_KV_HEADS * HEAD_DIM, inside, HALF)
        cached += NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
        _store(cached, first, inside, v_scale, IS_FP8)
        _store(cached + HALF, second, inside, v_scale, IS_FP8)
