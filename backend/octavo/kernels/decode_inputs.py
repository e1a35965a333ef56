"""What a step of one token a row is given, from the rows and their positions alone: lengths, slots, block tables.

On the device, so that a captured graph finds all of it by itself: the host sends three numbers a row. Knows no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels import language
from octavo.kernels.language import jit, tl

_STRIDE = 512


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """Of B rows. seq_lens: int32 [B] and num_tokens: int64 [B], tokens up to the row's own, 0 where a row only pads.

    slot_mapping: int64 [B], where the token's key and value go. block_table: int32 [B, max_blocks], valid up to
    seq_lens. sampling_rows: int32 [B], -1 where a row only pads.
    """

    seq_lens: Tensor
    num_tokens: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    sampling_rows: Tensor


def decode_inputs(rows: Tensor, positions: Tensor, table: Tensor, block_size: int) -> DecodeInputs:
    """rows, positions: int64 [B], the row of `table` and the position of the one token that each place computes.

    table: int32 [max_num_seqs + 1, max_blocks], contiguous, KV blocks by row. The last row belongs to no sequence: a
    place that names it only pads the step, and writes to slot 0 of the null block.
    """
    if language.on_gpu(rows):
        return decode_inputs_gpu(rows, positions, table, block_size)
    return decode_inputs_reference(rows, positions, table, block_size)


def decode_inputs_reference(rows: Tensor, positions: Tensor, table: Tensor, block_size: int) -> DecodeInputs:
    """The same in plain PyTorch."""
    is_padding = rows == table.shape[0] - 1
    num_tokens = (positions + 1).masked_fill(is_padding, 0)
    block_table = table[rows]
    blocks = block_table.gather(1, (positions // block_size)[:, None])[:, 0].long()
    return DecodeInputs(
        seq_lens=num_tokens.int(),
        num_tokens=num_tokens,
        slot_mapping=(blocks * block_size + positions % block_size).masked_fill(is_padding, 0),
        block_table=block_table,
        sampling_rows=rows.masked_fill(is_padding, -1).int(),
    )


def decode_inputs_gpu(rows: Tensor, positions: Tensor, table: Tensor, block_size: int) -> DecodeInputs:
    """`decode_inputs` on a GPU: one launch."""
    assert rows.is_contiguous() and positions.is_contiguous() and table.is_contiguous()
    num_places, max_blocks = rows.shape[0], table.shape[1]
    inputs = DecodeInputs(
        seq_lens=rows.new_empty(num_places, dtype=torch.int32),
        num_tokens=torch.empty_like(rows),
        slot_mapping=torch.empty_like(rows),
        block_table=table.new_empty(num_places, max_blocks),
        sampling_rows=rows.new_empty(num_places, dtype=torch.int32),
    )
    _decode_inputs_kernel[(num_places,)](
        *(inputs.seq_lens, inputs.num_tokens, inputs.slot_mapping, inputs.block_table, inputs.sampling_rows),
        *(rows, positions, table, table.shape[0] - 1, max_blocks),
        BLOCK_SIZE=block_size,
        STRIDE=_STRIDE,
        num_warps=4,
    )
    return inputs


@jit(do_not_specialize=["rows", "positions"])
def _decode_inputs_kernel(
    seq_lens: tl.tensor,
    num_tokens: tl.tensor,
    slot_mapping: tl.tensor,
    block_table: tl.tensor,
    sampling_rows: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    table: tl.tensor,
    padding_row: tl.tensor,
    max_blocks: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
) -> None:
    """Program b does place b. Of the row's blocks, those of its tokens are copied."""
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + place)
    if row == padding_row:
        tl.store(seq_lens + place, 0)
        tl.store(num_tokens + place, 0)
        tl.store(slot_mapping + place, 0)
        tl.store(sampling_rows + place, -1)
        return
    position = tl.load(positions + place)
    tl.store(seq_lens + place, (position + 1).to(tl.int32))
    tl.store(num_tokens + place, position + 1)
    tl.store(sampling_rows + place, row.to(tl.int32))
    source = table + row * max_blocks
    block = tl.load(source + position // BLOCK_SIZE).to(tl.int64)
    tl.store(slot_mapping + place, block * BLOCK_SIZE + position % BLOCK_SIZE)
    num_blocks = position // BLOCK_SIZE + 1
    for start in range(0, num_blocks, STRIDE):
        columns = start + tl.arange(0, STRIDE)
        inside = columns < num_blocks
        tl.store(block_table + place * max_blocks + columns, tl.load(source + columns, mask=inside), mask=inside)
