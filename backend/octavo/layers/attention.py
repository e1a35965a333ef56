"""Self-attention over the paged KV cache: rotation, cache write and attention of one layer, between two projections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.paged_attention import MAX_HEAD_DIM, AttentionMetadata, paged_attention
from octavo.kernels.quantise_rows import FP8, QuantisedRows
from octavo.kernels.rope_kv_write import HeadNorm, WriteForm, rope_kv_write, rope_kv_write_fp8
from octavo.layers.linear import Linear

__all__ = ["MAX_HEAD_DIM", "Attention", "AttentionMetadata", "AttentionSpec", "HeadNorm", "WriteForm"]


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention. `rope_table` is shared by all layers; the scales of `spec` and `form` are the same."""

    qkv: Linear
    output: Linear
    rope_table: Tensor
    spec: AttentionSpec
    form: WriteForm

    def __call__(
        self, x: Tensor | QuantisedRows, positions: Tensor, kv_cache: Tensor, metadata: AttentionMetadata
    ) -> Tensor:
        """x: [T, hidden]; positions: int64 [T]; writes this step's keys and values into kv_cache. -> [T, hidden]."""
        target = (positions, self.rope_table, kv_cache, metadata)
        if kv_cache.dtype == FP8:
            query = rope_kv_write_fp8(self.qkv(x), *target, self.form)
        else:
            query = rope_kv_write(self.qkv(x), *target, self.form.head_norm)
        return self.output(paged_attention(query, kv_cache, metadata, self.spec).flatten(1))
