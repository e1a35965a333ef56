"""What happens to queries, keys and values besides the rotation, on their way to attention and the KV cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMSNorm over each head of queries and keys, before the rotation. Weights: [head_dim]."""

    query_weight: Tensor
    key_weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class WriteForm:
    """What becomes of keys and values on their way into the cache: it holds keys / k_scale and values / v_scale."""

    head_norm: HeadNorm | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0
