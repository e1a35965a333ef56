"""Token embedding: rows of a table."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


class Embedding:
    """Owns the table [vocab_size, hidden]."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: int64 [T] -> [T, hidden]."""
        return functional.embedding(token_ids, self.table)
