"""Self-attention over the paged KV cache: rotation, cache write and attention of one layer, between two projections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.paged_attention import MAX_HEAD_DIM, AttentionMetadata, paged_attention
from octavo.kernels.rope_kv_write import HeadNorm, rope_kv_write
from octavo.layers.linear import Linear

__all__ = ["MAX_HEAD_DIM", "Attention", "AttentionMetadata", "HeadNorm"]


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention. `rope_table` is shared by all layers; `window` is in tokens, None for all positions."""

    qkv: Linear
    output: Linear
    rope_table: Tensor
    head_dim: int
    window: int | None
    head_norm: HeadNorm | None

    def __call__(self, x: Tensor, positions: Tensor, kv_cache: Tensor, metadata: AttentionMetadata) -> Tensor:
        """x: [T, hidden]; positions: int64 [T]; writes this step's keys and values into kv_cache. -> [T, hidden]."""
        query = rope_kv_write(self.qkv(x), positions, self.rope_table, kv_cache, metadata, self.head_norm)
        attended = paged_attention(query, kv_cache, metadata, self.head_dim**-0.5, self.window)
        return self.output(attended.flatten(1))
