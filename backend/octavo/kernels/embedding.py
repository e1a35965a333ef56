"""Token embedding: rows of a table by token ids, of which some may be known to the device only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels import language
from octavo.kernels.gather_rows import gather_rows
from octavo.kernels.language import jit, tl

# Columns a program: one 16-byte load a thread.
_COLUMNS = 1024


def embedding(table: Tensor, token_ids: Tensor, sampled: Tensor | None = None) -> Tensor:
    """out[t] = table[token_ids[t]]; an id of -1 - r stands for the token sampled[r].

    table: [vocab_size, n]. token_ids: int64 or int32 [T]. sampled: int64 or int32 [rows], None if no id is negative.
    Returns [T, n]. The host need not know `sampled` when it stages the ids of the next step.
    """
    if language.on_gpu(table):
        return embedding_gpu(table, token_ids, sampled)
    return gather_rows(table, _known(token_ids, sampled).long())


def embedding_reference(table: Tensor, token_ids: Tensor, sampled: Tensor | None = None) -> Tensor:
    """The same in plain PyTorch."""
    return functional.embedding(_known(token_ids, sampled), table)


def _known(token_ids: Tensor, sampled: Tensor | None) -> Tensor:
    if sampled is None:
        return token_ids
    return torch.where(token_ids < 0, sampled[(-1 - token_ids).clamp(min=0)], token_ids)


def embedding_gpu(table: Tensor, token_ids: Tensor, sampled: Tensor | None = None) -> Tensor:
    """`embedding` on a GPU."""
    assert table.is_contiguous() and token_ids.is_contiguous() and (sampled is None or sampled.is_contiguous())
    num_tokens, width = token_ids.shape[0], table.shape[1]
    output = table.new_empty(num_tokens, width)
    grid = (num_tokens, -(-width // _COLUMNS))
    _embedding_kernel[grid](output, table, token_ids, sampled, WIDTH=width, COLUMNS=_COLUMNS, num_warps=4)
    return output


@jit(do_not_specialize=["token_ids", "sampled"])
def _embedding_kernel(
    output: tl.tensor,
    table: tl.tensor,
    token_ids: tl.tensor,
    sampled: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    token_id = tl.load(token_ids + token).to(tl.int64)
    if sampled is not None:  # noqa: SIM102, the one is decided when compiling, the other on the device
        if token_id < 0:
            token_id = tl.load(sampled + (-1 - token_id)).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    row = tl.load(table + token_id * WIDTH + columns, mask=inside)
    tl.store(output + token * WIDTH + columns, row, mask=inside)
