"""Attention over a paged KV cache for ragged batches. Knows block tables; nothing of sequences or scheduling.

The result of a query row depends on that row and its own keys only, bit for bit: not on its neighbours in the batch,
on how its prompt was cut into chunks, or on where its blocks lie. (The reference promises this only to rounding.)
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels import language, native
from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.decode_plan import DecodeCapacity, DecodeScratch, plan_decode
from octavo.kernels.kv_layout import read_blocks
from octavo.kernels.paged_decode import paged_decode
from octavo.kernels.paged_prefill import PrefillRows, paged_prefill

MAX_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the tokens of a step lie. B rows (sequences) bring T tokens in all; row b's tokens are contiguous.

    cu_seqlens_q: int32 [B + 1], row b owns tokens [cu_seqlens_q[b], cu_seqlens_q[b + 1]).
    seq_lens: int32 [B], tokens in the KV cache of row b after this step's writes; its queries are the last of them.
    block_table: int32 [B, max_blocks], row stride may be larger. Entries past seq_lens are never read.
    slot_mapping: int64 [T], block_id * block_size + offset, where each token's key and value are written.
    max_seqlen_q, max_seq_len: the largest of the rows' query and sequence lengths.
    num_decode_rows: the first so many rows have one query each. On a GPU they go through a kernel of their own.
    decode_scratch: for that kernel, its plans written from the first seq_lens; None to make one at every call.
    """

    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    max_seqlen_q: int
    max_seq_len: int
    num_decode_rows: int = 0
    decode_scratch: DecodeScratch | None = None


class _Call(ctypes.Structure):
    """`struct paged_attention` of paged_attention.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "query", "kv_cache", "cu_seqlens_q", "seq_lens")),
        ("block_table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("block_table_stride", "num_rows", "num_heads", "num_kv_heads")),
        *((name, ctypes.c_int64) for name in ("head_dim", "block_size", "window", "is_causal")),
        *((name, ctypes.c_int64) for name in ("is_bf16", "num_threads")),
        ("scale", ctypes.c_double),
    )


def paged_attention(query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> Tensor:
    """Causal attention of each query at position p over positions [max(0, p - spec.window + 1), p] of its sequence; not
    causal, over all of them.

    query: [T, num_heads, head_dim]. kv_cache: [num_blocks, 2, num_kv_heads, block_size, head_dim] of the same dtype or
    FP8 e4m3, see kv_layout. num_heads is a multiple of num_kv_heads; head_dim a multiple of 8 up to 256. Softmax in
    fp32. Returns [T, num_heads, head_dim]. Nothing is written in place. On CPU only the reference knows soft caps and
    FP8.
    """
    if language.on_gpu(query):
        return paged_attention_gpu(query, kv_cache, metadata, spec)
    kernel = native.function("octavo_paged_attention", query)
    if kernel is None or spec.soft_cap is not None or kv_cache.dtype != query.dtype:
        return paged_attention_reference(query, kv_cache, metadata, spec)
    return _paged_attention_cpu(kernel, query, kv_cache, metadata, spec)


def paged_attention_gpu(query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> Tensor:
    """The same with the GPU's kernels: one launch for the rows of one query, another for the chunks of prompts.

    kv_cache: in plain layout, of the queries' dtype or FP8 e4m3; block_size is a power of two.
    """
    num_decode_rows, num_rows = metadata.num_decode_rows, metadata.seq_lens.shape[0]
    output = torch.empty_like(query)
    if num_decode_rows > 0:
        attended = query[:num_decode_rows], kv_cache, metadata.block_table[:num_decode_rows]
        scratch = metadata.decode_scratch or _scratch_for_one_call(query, metadata, spec)
        paged_decode(*attended, scratch, spec, output[:num_decode_rows])
    if num_decode_rows < num_rows:
        parts = (metadata.cu_seqlens_q, metadata.seq_lens, metadata.block_table)
        paged_prefill(query, kv_cache, PrefillRows(*(part[num_decode_rows:] for part in parts)), spec, output)
    return output


def _scratch_for_one_call(query: Tensor, metadata: AttentionMetadata, spec: AttentionSpec) -> DecodeScratch:
    capacity = DecodeCapacity(metadata.num_decode_rows, metadata.max_seq_len, *query.shape[1:])
    scratch = capacity.allocate([spec.window], query.device)
    plan_decode(metadata.seq_lens[: metadata.num_decode_rows], scratch)
    return scratch


def _paged_attention_cpu(
    kernel: native.Function,
    query: Tensor,
    kv_cache: Tensor,
    metadata: AttentionMetadata,
    spec: AttentionSpec,
) -> Tensor:
    num_blocks, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    num_heads = query.shape[1]
    assert query.is_contiguous() and kv_cache.is_contiguous() and num_blocks > 0
    assert spec.k_scale == spec.v_scale == 1
    assert num_heads % num_kv_heads == 0 and head_dim % 8 == 0 and head_dim <= MAX_HEAD_DIM
    for tensor in (metadata.cu_seqlens_q, metadata.seq_lens, metadata.block_table):
        assert tensor.dtype == torch.int32 and tensor.stride(-1) == 1
    output = torch.empty_like(query)
    call = _Call(
        output.data_ptr(),
        query.data_ptr(),
        kv_cache.data_ptr(),
        metadata.cu_seqlens_q.data_ptr(),
        metadata.seq_lens.data_ptr(),
        metadata.block_table.data_ptr(),
        metadata.block_table.stride(0),
        metadata.seq_lens.shape[0],
        num_heads,
        num_kv_heads,
        head_dim,
        block_size,
        spec.window or 0,
        spec.causal,
        query.dtype == torch.bfloat16,
        torch.get_num_threads(),
        spec.scale,
    )
    if kernel(ctypes.byref(call)):
        raise MemoryError("paged attention found no memory for its list of tasks")
    return output


def paged_attention_reference(
    query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, spec: AttentionSpec
) -> Tensor:
    """The same in plain PyTorch, one sequence after the other, in fp32."""
    num_kv_heads, block_size, window = kv_cache.shape[2], kv_cache.shape[3], spec.window
    output = torch.empty_like(query)
    starts = metadata.cu_seqlens_q.tolist()
    for row, length in enumerate(metadata.seq_lens.tolist()):
        first, last = starts[row], starts[row + 1]
        if first == last:
            continue
        positions = torch.arange(length - (last - first), length, device=query.device)
        if not spec.causal:
            positions = torch.full_like(positions, length - 1)
        oldest = 0 if window is None else max(0, length - (last - first) - window + 1)
        begin = oldest // block_size
        blocks = metadata.block_table[row, begin : -(-length // block_size)].long()
        keys, values = (part[: length - begin * block_size].float() for part in read_blocks(kv_cache, blocks))
        key_positions = torch.arange(begin * block_size, length, device=query.device)
        distance = positions[:, None] - key_positions[None, :]
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        # 0 x NaN is NaN: what lies in front of the window may be anything.
        values = values.masked_fill(hidden.all(0)[:, None, None], 0.0)
        grouped = query[first:last].float().reshape(last - first, num_kv_heads, -1, query.shape[2])
        scores = torch.einsum("thgd,shd->hgts", grouped, keys) * (spec.scale * spec.k_scale)
        if spec.soft_cap is not None:
            scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        output[first:last] = (
            torch.einsum("hgts,shd->thgd", weights, values * spec.v_scale).flatten(1, 2).to(query.dtype)
        )
    return output
