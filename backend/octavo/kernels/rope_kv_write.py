"""From the fused QKV projection to attention's inputs: optional per-head RMSNorm, rotary embedding, KV-cache write."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from octavo.kernels import language, native
from octavo.kernels.kv_layout import write_slots
from octavo.kernels.kv_write_form import HeadNorm, WriteForm
from octavo.kernels.paged_attention import AttentionMetadata
from octavo.kernels.quantise_rows import FP8_MAX
from octavo.kernels.rms_norm import rms_norm_reference
from octavo.kernels.rope_kv_write_gpu import rope_kv_write_gpu

__all__ = ["HeadNorm", "WriteForm", "rope_kv_write", "rope_kv_write_fp8", "rope_kv_write_reference", "rotate"]


class _Call(ctypes.Structure):
    """`struct rope_kv_write` of rope_kv_write.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "kv_cache", "qkv", "positions", "slots", "table")),
        *((name, ctypes.c_void_p) for name in ("query_weight", "key_weight")),
        *((name, ctypes.c_int64) for name in ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "block_size")),
        *((name, ctypes.c_int64) for name in ("is_bf16", "num_threads")),
        ("eps", ctypes.c_double),
    )


def rope_kv_write(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    metadata: AttentionMetadata,
    head_norm: HeadNorm | None = None,
) -> Tensor:
    """Rotates queries and keys, writes keys and values into their slots of `kv_cache`, returns the queries.

    qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], may be overwritten. positions: int64 [T].
    table: fp32 [max_position, 2, head_dim / 2], cosines then sines. kv_cache: written in place at
    metadata.slot_mapping. Returns [T, num_heads, head_dim].
    """
    if language.on_gpu(qkv):
        return rope_kv_write_gpu(qkv, positions, table, kv_cache, metadata, WriteForm(head_norm))
    kernel = native.function("octavo_rope_kv_write", qkv)
    if kernel is None:
        return rope_kv_write_reference(qkv, positions, table, kv_cache, metadata, head_norm)
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    num_tokens = qkv.shape[0]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    slots = metadata.slot_mapping
    assert qkv.is_contiguous() and kv_cache.is_contiguous() and table.is_contiguous() and kv_cache.dtype == qkv.dtype
    assert positions.dtype == slots.dtype == torch.int64 and positions.is_contiguous() and slots.is_contiguous()
    query = qkv.new_empty(num_tokens, num_heads, head_dim)
    call = _Call(
        query.data_ptr(),
        kv_cache.data_ptr(),
        qkv.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        table.data_ptr(),
        head_norm.query_weight.data_ptr() if head_norm else None,
        head_norm.key_weight.data_ptr() if head_norm else None,
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        block_size,
        qkv.dtype == torch.bfloat16,
        torch.get_num_threads(),
        head_norm.eps if head_norm else 0.0,
    )
    kernel(ctypes.byref(call))
    return query


def rope_kv_write_fp8(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    metadata: AttentionMetadata,
    form: WriteForm,
) -> Tensor:
    """`rope_kv_write` into a cache of FP8 e4m3: what is beyond a scale's reach becomes the largest number."""
    if language.on_gpu(qkv):
        return rope_kv_write_gpu(qkv, positions, table, kv_cache, metadata, form)
    query, key, value = _rotated(qkv, positions, table, kv_cache, form.head_norm)
    stored = [
        (part.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(kv_cache.dtype)
        for part, scale in ((key, form.k_scale), (value, form.v_scale))
    ]
    write_slots(kv_cache, metadata.slot_mapping, *stored)
    return query


def rope_kv_write_reference(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    kv_cache: Tensor,
    metadata: AttentionMetadata,
    head_norm: HeadNorm | None = None,
) -> Tensor:
    """The same in plain PyTorch. The rotation is computed in fp32 and rounded once."""
    query, key, value = _rotated(qkv, positions, table, kv_cache, head_norm)
    write_slots(kv_cache, metadata.slot_mapping, key, value)
    return query


def _rotated(
    qkv: Tensor, positions: Tensor, table: Tensor, kv_cache: Tensor, head_norm: HeadNorm | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, rotated, and values."""
    num_kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    query, key, value = torch.tensor_split(heads, (num_heads, num_heads + num_kv_heads), dim=1)
    if head_norm is not None:
        query = rms_norm_reference(query, head_norm.query_weight, head_norm.eps)
        key = rms_norm_reference(key, head_norm.key_weight, head_norm.eps)
    cos, sin = table[positions].unsqueeze(1).unbind(2)
    return rotate(query, cos, sin), rotate(key, cos, sin), value


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + head_dim / 2) of heads [T, n, head_dim] by the angles in cos, sin [T, 1, head_dim / 2].

    The order of halves is that of "Rotary Position Embedding" as Hugging Face checkpoints store it.
    """
    first, second = heads.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)
