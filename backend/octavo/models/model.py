"""What the runner asks of a model, whatever its family. Knows no family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from octavo.layers.attention import AttentionMetadata
from octavo.models.weights import WeightSource


class ModelSpec(Protocol):
    """The shape of a model. `unused_tensors` are those of a checkpoint that are not needed."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers with a KV cache of their own."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values in each layer."""
        ...

    @property
    def head_dim(self) -> int:
        """Numbers in each of them."""
        ...

    @property
    def unused_tensors(self) -> tuple[str, ...]:
        """Names in a checkpoint."""
        ...


class Model(Protocol):
    """Owns its weights; the KV cache belongs to the caller."""

    def __init__(self, spec: Any, weights: WeightSource) -> None: ...

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> Any:
        """The spec of a config.json of this family; raises ModelLoadError."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """Its shape."""
        ...

    def __call__(
        self, token_ids: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], metadata: AttentionMetadata
    ) -> Tensor:
        """One step of all rows: int64 [T], int64 [T], one cache a layer -> final hidden states [T, hidden_size]."""
        ...
