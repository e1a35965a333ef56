"""From logits to tokens on the device, in launches that a captured graph can replay.

Order, the sampling contract's: raw logprobs -> edits (logit_edits.py) -> greedy -> temperature -> min_p -> top_k ->
top_p -> draw. The draw is a race: the smallest exponential noise / weight wins, the same token as the largest sum of
scaled logit and Gumbel noise. A row's result depends on its own logits, parameters and position only. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.counter_noise import exponential, stream_key
from octavo.kernels.language import jit, next_power_of_2, tl
from octavo.kernels.logit_edits import edit_logits
from octavo.kernels.sampled_row import Sampled, finish_row
from octavo.kernels.sampling_tables import (
    COLUMNS,
    EDITS,
    MAX_BAD_WORD_TOKENS,
    MAX_BEST,
    MIN_P_FLOOR,
    NUM_BEST,
    OFF_TOP_P,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SamplingTables,
)
from octavo.kernels.truncated_draw import draw_truncated, load_logits

# The vocabulary is split at fixed places, whatever the batch. A group's maximum tells where the largest logits are.
_CHUNK = 4096
_GROUP = 64
_NO_ID = tl.constexpr(2**31 - 1)
_LOG2_E = tl.constexpr(1.4426950408889634)
# Columns of `parts` and `part_ids`, one row a chunk.
_RAW_PEAK, _RAW_WEIGHT, _PEAK, _TIME = (tl.constexpr(column) for column in range(4))
_PEAK_ID, _TIME_ID = tl.constexpr(0), tl.constexpr(1)


@dataclass(frozen=True, slots=True)
class SamplingScratch:
    """Memory that `sample` works in, for up to B rows of V tokens in C chunks: about 12 B V bytes.

    edited: fp32 [B, V]; values: fp32 and ids: int32 [B, C * 4096], tokens that truncation looks at; parts: fp32
    [B, C, 4] and part_ids: int32 [B, C, 2], of chunks; raw_maxima, maxima: fp32 [B, C * 64], of groups of 64 tokens.
    """

    edited: Tensor
    values: Tensor
    ids: Tensor
    parts: Tensor
    part_ids: Tensor
    raw_maxima: Tensor
    maxima: Tensor

    @classmethod
    def allocate(cls, num_rows: int, vocab_size: int, device: torch.device | str) -> SamplingScratch:
        """Not initialised."""
        num_chunks = -(-vocab_size // _CHUNK)

        def empty(*columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(num_rows, *columns, dtype=dtype, device=device)

        return cls(
            edited=empty(vocab_size),
            values=empty(num_chunks * _CHUNK),
            ids=empty(num_chunks * _CHUNK, dtype=torch.int32),
            parts=empty(num_chunks, 4),
            part_ids=empty(num_chunks, 2, dtype=torch.int32),
            raw_maxima=empty(num_chunks * _CHUNK // _GROUP),
            maxima=empty(num_chunks * _CHUNK // _GROUP),
        )


def sample(
    logits: Tensor,
    tables: SamplingTables,
    scratch: SamplingScratch,
    positions: Tensor,
    rows: Tensor,
    out: Sampled | None = None,
) -> Sampled:
    """Draws the next token of each row and notes it in the tables.

    logits: [B, V], contiguous, fp32, bf16 or fp16, not written. rows: int32 [B], the row of the tables, -1 for a place
    that samples nothing (its token is 0). positions: int64 [B], the number of tokens that the row has. Reads a greedy
    row's logits once, another's twice; for logprobs' ranks and for edits (which write them too) once more each.
    Returns the first B rows of `out`, which is made where there is none.
    """
    num_rows, vocab_size = logits.shape
    num_chunks = -(-vocab_size // _CHUNK)
    assert logits.is_contiguous() and scratch.edited.shape[0] >= num_rows
    assert scratch.parts.shape[1] == num_chunks and tables.counts.shape[1] == vocab_size
    edit_logits(logits, scratch.edited, tables, positions, rows)
    tensors = (logits, scratch.edited, rows)
    parameters = (tables.numbers, tables.integers)
    parts = (scratch.parts, scratch.part_ids)
    _reduce_chunks[num_rows, num_chunks](
        *tensors,
        *parameters,
        *parts,
        *(scratch.raw_maxima, scratch.maxima, vocab_size),
        CHUNK=_CHUNK,
        GROUP=_GROUP,
        num_warps=8,
    )
    shape = {"CHUNK": _CHUNK, "PADDED_CHUNKS": next_power_of_2(num_chunks)}
    _draw_chunks[num_rows, num_chunks](
        *tensors, positions, *parameters, tables.seeds, *parts, vocab_size, num_chunks, **shape, num_warps=8
    )
    _draw_truncated[(num_rows,)](
        *tensors,
        positions,
        *parameters,
        tables.seeds,
        *parts,
        *(scratch.maxima, scratch.values, scratch.ids, vocab_size, num_chunks),
        **shape,
        GROUP=_GROUP,
        num_warps=8,
    )
    sampled = (out or Sampled.allocate(num_rows, logits.device)).first(num_rows)
    finish_row[(num_rows,)](
        *(logits, rows, positions, tables.numbers, tables.integers, tables.counts, tables.recent),
        *(*parts, scratch.raw_maxima, sampled.token_ids, sampled.failed, sampled.logprobs),
        *(sampled.ranks, sampled.best_ids, sampled.best_logprobs, sampled.best_ranks, vocab_size, num_chunks),
        TILE=_CHUNK,
        GROUP=_GROUP,
        PADDED_CHUNKS=next_power_of_2(num_chunks),
        PADDED_GROUPS=next_power_of_2(num_chunks) * _CHUNK // _GROUP,
        BEST_A_ROW=MAX_BEST,
        WORD_TOKENS=MAX_BAD_WORD_TOKENS,
        num_warps=8,
    )
    return sampled


@jit
def _reduce_chunks(
    logits: tl.tensor,
    edited: tl.tensor,
    rows: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    parts: tl.tensor,
    part_ids: tl.tensor,
    raw_maxima: tl.tensor,
    maxima: tl.tensor,
    vocab_size: tl.tensor,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """Program (b, c): peaks of chunk c in row b, before and after the edits; maxima of its groups where asked for."""
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index).to(tl.int64)
    if row < 0:
        return
    chunk = tl.program_id(1)
    part = index * tl.num_programs(1) + chunk
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    groups = part * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
    x = _load_chunk(logits + index * vocab_size, ids, vocab_size)
    peak = tl.max(x, 0)
    tl.store(parts + part * 4 + _RAW_PEAK, peak)
    if tl.load(integers + row * COLUMNS + NUM_BEST) >= 0:
        weights = tl.exp(x - tl.where(peak == float("-inf"), 0.0, peak))
        tl.store(parts + part * 4 + _RAW_WEIGHT, tl.sum(weights, 0))
        tl.store(raw_maxima + groups, tl.max(tl.reshape(x, [CHUNK // GROUP, GROUP]), 1))
    if tl.load(integers + row * COLUMNS + EDITS) != 0:
        x = _load_chunk(edited + index * vocab_size, ids, vocab_size)
        peak = tl.max(x, 0)
    tl.store(parts + part * 4 + _PEAK, peak)
    tl.store(part_ids + part * 2 + _PEAK_ID, tl.min(tl.where(x == peak, ids, _NO_ID), 0))
    if tl.load(integers + row * COLUMNS + TOP_K) > 0:
        tl.store(maxima + groups, tl.max(tl.reshape(x, [CHUNK // GROUP, GROUP]), 1))


@jit
def _load_chunk(source: tl.tensor, ids: tl.tensor, vocab_size: tl.tensor) -> tl.tensor:
    """fp32; a NaN counts as +inf, so that a row's peak says whether all its numbers are finite."""
    x = tl.load(source + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.where(x != x, float("inf"), x)


@jit(do_not_specialize=["positions"])
def _draw_chunks(
    logits: tl.tensor,
    edited: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    seeds: tl.tensor,
    parts: tl.tensor,
    part_ids: tl.tensor,
    vocab_size: tl.tensor,
    num_chunks: tl.tensor,
    CHUNK: tl.constexpr,
    PADDED_CHUNKS: tl.constexpr,
) -> None:
    """Program (b, c): the winner of chunk c in row b, for rows whose every token may be drawn."""
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index).to(tl.int64)
    if row < 0:
        return
    numbers += row * COLUMNS
    integers += row * COLUMNS
    temperature = tl.load(numbers + TEMPERATURE)
    if (temperature == 0.0) | _is_truncated(numbers, integers):
        return
    first = index * num_chunks
    peak = _row_peak(parts + first * 4, num_chunks, PADDED_CHUNKS)
    if tl.abs(peak) == float("inf"):
        return
    chunk = tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    has_edits = tl.load(integers + EDITS) != 0
    x = load_logits(logits + index * vocab_size, edited + index * vocab_size, has_edits, ids, vocab_size)
    key = stream_key(tl.load(seeds + row), tl.load(positions + index))
    # 1 / weight, without a division a token; bounded for the sake of -inf, which cannot win at 2**120 either.
    inverse = tl.exp2(tl.minimum((peak - x) * (_LOG2_E / temperature), 120.0))
    times = tl.where(ids < vocab_size, exponential(key, ids) * inverse, float("inf"))
    time = tl.min(times, 0)
    tl.store(parts + (first + chunk) * 4 + _TIME, time)
    tl.store(part_ids + (first + chunk) * 2 + _TIME_ID, tl.min(tl.where(times == time, ids, _NO_ID), 0))


@jit(do_not_specialize=["positions"])
def _draw_truncated(
    logits: tl.tensor,
    edited: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    seeds: tl.tensor,
    parts: tl.tensor,
    part_ids: tl.tensor,
    maxima: tl.tensor,
    values: tl.tensor,
    listed: tl.tensor,
    vocab_size: tl.tensor,
    num_chunks: tl.tensor,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_CHUNKS: tl.constexpr,
) -> None:
    """Program b: the winner of row b, if it is truncated, as that of its first chunk; the others have none."""
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index).to(tl.int64)
    if row < 0:
        return
    numbers += row * COLUMNS
    integers += row * COLUMNS
    if (tl.load(numbers + TEMPERATURE) == 0.0) | (not _is_truncated(numbers, integers)):
        return
    first = index * num_chunks
    peak = _row_peak(parts + first * 4, num_chunks, PADDED_CHUNKS)
    if tl.abs(peak) == float("inf"):
        return
    num_maxima = num_chunks * (CHUNK // GROUP)
    time, token_id = draw_truncated(
        logits + index * vocab_size,
        edited + index * vocab_size,
        maxima + index * num_maxima,
        values + first * CHUNK,
        listed + first * CHUNK,
        numbers,
        integers,
        peak,
        stream_key(tl.load(seeds + row), tl.load(positions + index)),
        vocab_size,
        num_maxima,
        CHUNK,
    )
    slots = tl.arange(0, PADDED_CHUNKS)
    tl.store(parts + (first + slots) * 4 + _TIME, tl.where(slots == 0, time, float("inf")), mask=slots < num_chunks)
    tl.store(part_ids + first * 2 + _TIME_ID, token_id)


@jit
def _is_truncated(numbers: tl.tensor, integers: tl.tensor) -> tl.tensor:
    """Whether the row, by its parameters, asks for min_p, top_k or top_p."""
    has_floor = tl.load(numbers + MIN_P_FLOOR) > float("-inf")
    return (tl.load(integers + TOP_K) > 0) | (tl.load(numbers + TOP_P) < OFF_TOP_P) | has_floor


@jit
def _row_peak(parts: tl.tensor, num_chunks: tl.tensor, PADDED_CHUNKS: tl.constexpr) -> tl.tensor:
    """The largest of the row's logits after the edits."""
    slots = tl.arange(0, PADDED_CHUNKS)
    return tl.max(tl.load(parts + slots * 4 + _PEAK, mask=slots < num_chunks, other=float("-inf")), 0)
