"""Token embedding: rows of a table."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.embedding import embedding


class Embedding:
    """Owns the table [vocab_size, hidden]."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, token_ids: Tensor, sampled: Tensor | None = None) -> Tensor:
        """token_ids: int64 [T], of which -1 - r stands for sampled[r], int64 [rows] -> [T, hidden]."""
        return embedding(self.table, token_ids, sampled)
