"""The work list of paged_decode: which stretches of which sequences' KV a step reads. Knows lengths, no KV.

It is written on the device from the sequences' lengths by one small launch a step, for all layers of one window: a
captured graph that begins with it serves every mix of lengths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.language import jit, next_power_of_2, tl

CHUNK_SIZE = 256
"""Tokens of KV that one unit of work reads at most, from a multiple of it on: of constant size, so that the result of
a row never depends on its neighbours.

Small enough that one sequence fills the GPU: 32k tokens with 8 KV heads are 1,024 programs' work, 7.8 for each of 132
multiprocessors, of which the busiest gets 8 (97 % of the time is work); 1k tokens are 32, half as long as with 512.
Large enough that partial results are little beside the KV: fp32 against bf16, 4 query heads a KV head, they are
(4 x 4) / (256 x 2 x 2) = 1.6 % of its bytes, written once and read once, the latter mostly from L2.
"""

_CHUNK = tl.constexpr(CHUNK_SIZE)
_STRIDE = tl.constexpr(128)


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Work list for one sliding window (None: all positions). Written by `plan_decode`, read by paged_decode's kernels.

    counts: int32 [2], how many units and how many combined rows there are.
    units: int32 [max_units, 4]: row, its first position to read, the position after the last, slot of the partial
        result; slot -1: the row's only unit, which writes the output. Whole chunks come first, rests last: programs
        that take every n-th unit end at about the same time.
    combined: int32 [max_num_seqs, 4]: row, its first slot, number of slots, nothing. A row without keys has no slot.
    """

    window: int | None
    counts: Tensor
    units: Tensor
    combined: Tensor


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """What paged_decode writes between its launches. One serves all layers and steps, one after the other.

    partial_output: fp32 [max_slots, num_heads, head_dim]. partial_lse: fp32 [max_slots, num_heads], log2 of the sum of
    exponentials. plans: by sliding window.
    """

    partial_output: Tensor
    partial_lse: Tensor
    plans: dict[int | None, DecodePlan]


@dataclass(frozen=True, slots=True)
class DecodeCapacity:
    """What a scratch must hold: rows of one query each, of sequences of up to max_model_len tokens."""

    max_num_seqs: int
    max_model_len: int
    num_heads: int
    head_dim: int

    def max_units(self, window: int | None) -> int:
        """Units of the longest work list. A window that begins inside a chunk touches one chunk more."""
        chunks = -(-self.max_model_len // CHUNK_SIZE)
        if window is not None:
            chunks = min(chunks, -(-window // CHUNK_SIZE) + 1)
        return self.max_num_seqs * chunks

    def allocate(self, windows: Iterable[int | None], device: torch.device) -> DecodeScratch:
        """A scratch with an unwritten plan for each of the windows.

        Its size is that of partial_output: max_num_seqs * max_model_len / 256 * num_heads * head_dim * 4 bytes, 537 MB
        for 256 sequences of 32k tokens with 32 heads of 128.
        """
        plans = {window: self._plan(window, device) for window in windows}
        max_slots = max(self.max_units(window) for window in plans)
        return DecodeScratch(
            partial_output=torch.empty(max_slots, self.num_heads, self.head_dim, device=device),
            partial_lse=torch.empty(max_slots, self.num_heads, device=device),
            plans=plans,
        )

    def _plan(self, window: int | None, device: torch.device) -> DecodePlan:
        def integers(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.int32, device=device)

        units = integers(self.max_units(window), 4)
        return DecodePlan(window, counts=integers(2), units=units, combined=integers(self.max_num_seqs, 4))


def plan_decode(seq_lens: Tensor, scratch: DecodeScratch) -> None:
    """Writes all plans of `scratch` in place. Must run before the step's first paged_decode, in the same stream.

    seq_lens: int32 [B], tokens to attend to, the row's own included; 0 for rows that only pad the batch.
    """
    for plan in scratch.plans.values():
        assert seq_lens.dtype == torch.int32 and seq_lens.is_contiguous() and len(seq_lens) <= len(plan.combined)
        write_plan[(len(seq_lens),)](
            plan.counts,
            plan.units,
            plan.combined,
            seq_lens,
            len(seq_lens),
            WINDOW=plan.window or 0,
            # Not the step's: whatever its number, no kernel is compiled in the middle of serving.
            ROWS=next_power_of_2(len(plan.combined)),
            num_warps=4,
        )


@jit(do_not_specialize=["num_rows"])
def write_plan(
    counts: tl.tensor,
    units: tl.tensor,
    combined: tl.tensor,
    seq_lens: tl.tensor,
    num_rows: tl.tensor,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """One program a row: it sums what the rows before it need, then writes its own units."""
    row = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    lengths = tl.load(seq_lens + rows, mask=rows < num_rows, other=0)
    if WINDOW:
        begins = tl.maximum(lengths - WINDOW, 0)
    else:
        begins = lengths * 0
    # positions of a row   ...... begin ...... | whole chunk | whole chunk | rest ) length
    #                      | first chunk ......|
    first_chunks = begins // _CHUNK
    whole = lengths // _CHUNK - first_chunks
    rests = (lengths % _CHUNK > 0).to(tl.int32)
    chunks = whole + rests
    slots = tl.where(chunks > 1, chunks, 0)
    is_combined = ((chunks != 1) & (rows < num_rows)).to(tl.int32)
    num_whole = tl.sum(whole)
    if row == 0:
        tl.store(counts, num_whole + tl.sum(rests))
        tl.store(counts + 1, tl.sum(is_combined))

    before = rows < row
    own = rows == row
    length = tl.sum(tl.where(own, lengths, 0))
    begin = tl.sum(tl.where(own, begins, 0))
    first_chunk = begin // _CHUNK
    own_whole = tl.sum(tl.where(own, whole, 0))
    num_slots = tl.sum(tl.where(own, slots, 0))
    first_slot = tl.sum(tl.where(before, slots, 0))
    first_unit = tl.sum(tl.where(before, whole, 0))
    rest_unit = num_whole + tl.sum(tl.where(before, rests, 0))

    if tl.sum(tl.where(own, is_combined, 0)) > 0:
        entry = combined + tl.sum(tl.where(before, is_combined, 0)) * 4
        tl.store(entry, row)
        tl.store(entry + 1, first_slot)
        tl.store(entry + 2, num_slots)
    num_chunks = tl.sum(tl.where(own, chunks, 0))
    for start in range(0, num_chunks, _STRIDE):
        index = start + tl.arange(0, _STRIDE)
        chunk_begin = (first_chunk + index) * _CHUNK
        entry = units + tl.where(index < own_whole, first_unit + index, rest_unit) * 4
        live = index < num_chunks
        tl.store(entry, row + index * 0, mask=live)
        tl.store(entry + 1, tl.maximum(chunk_begin, begin), mask=live)
        tl.store(entry + 2, tl.minimum(chunk_begin + _CHUNK, length), mask=live)
        tl.store(entry + 3, tl.where(num_slots > 0, first_slot + index, -1), mask=live)
