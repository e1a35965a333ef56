"""The sampler's last launch, one program a row: the token from the chunks' winners, its logprobs, the tables' notes.

Logprobs are those of the raw logits. The best ones are taken one by one from the group with the largest maximum, so the
row is neither sorted nor read for them. Knows nothing of how the chunks' winners were found.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from octavo.kernels.language import jit, tl
from octavo.kernels.sampling_tables import COLUMNS, EDITS, MAX_BEST, NUM_BEST, PENALTIES, TEMPERATURE

# Why a row drew nothing.
NOT_FINITE, ALL_MASKED, OVERFLOW = 1, 2, 3

_NOT_FINITE, _ALL_MASKED, _OVERFLOW = tl.constexpr(NOT_FINITE), tl.constexpr(ALL_MASKED), tl.constexpr(OVERFLOW)
_NO_ID = tl.constexpr(2**31 - 1)
_MOST_COUNTED = tl.constexpr(32767)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What B rows drew. token_ids: int64 [B]. failed: int32 [B], 0 or a reason of this module; the token is 0 then.

    For rows that ask for logprobs, not written for others: logprobs: fp32 [B] and ranks: int32 [B] of the token;
    best_ids, best_ranks: int32 and best_logprobs: fp32 [B, 20], the best first, equal ones by id; as many as asked for.
    Id -1 is none: logits of -inf are not listed.
    """

    token_ids: Tensor
    failed: Tensor
    logprobs: Tensor
    ranks: Tensor
    best_ids: Tensor
    best_logprobs: Tensor
    best_ranks: Tensor

    @classmethod
    def allocate(cls, num_rows: int, device: torch.device | str) -> Sampled:
        """Not initialised."""
        return cls.over(torch.empty(cls.num_words(num_rows), dtype=torch.int64, device=device), num_rows)

    @classmethod
    def over(cls, words: Tensor, num_rows: int) -> Sampled:
        """Views of `words`, int64 [num_words(num_rows)]: one copy of all, or of what comes first, moves it.

        words   [ token_ids | failed | logprobs | ranks | best_ids | best_logprobs | best_ranks ]
        """
        halves = words.view(torch.int32)
        ends, end = [], 2 * num_rows
        for width in (1, 1, 1, MAX_BEST, MAX_BEST, MAX_BEST):
            ends.append((end, end + width * num_rows))
            end += width * num_rows
        failed, logprobs, ranks, best_ids, best_logprobs, best_ranks = (halves[begin:end] for begin, end in ends)
        return cls(
            token_ids=words[:num_rows],
            failed=failed,
            logprobs=logprobs.view(torch.float32),
            ranks=ranks,
            best_ids=best_ids.view(num_rows, MAX_BEST),
            best_logprobs=best_logprobs.view(torch.float32).view(num_rows, MAX_BEST),
            best_ranks=best_ranks.view(num_rows, MAX_BEST),
        )

    @staticmethod
    def num_words(num_rows: int, with_logprobs: bool = True) -> int:
        """64-bit words that `over` needs, or those that hold all but the logprobs."""
        return -(-num_rows * ((5 + 3 * MAX_BEST) if with_logprobs else 3) // 2)

    def first(self, num_rows: int) -> Sampled:
        """Views of the first rows."""
        return Sampled(*(getattr(self, field.name)[:num_rows] for field in fields(self)))


@jit(do_not_specialize=["positions"])
def finish_row(
    logits: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    counts: tl.tensor,
    recent: tl.tensor,
    parts: tl.tensor,
    part_ids: tl.tensor,
    raw_maxima: tl.tensor,
    token_ids: tl.tensor,
    failed: tl.tensor,
    logprobs: tl.tensor,
    ranks: tl.tensor,
    best_ids: tl.tensor,
    best_logprobs: tl.tensor,
    best_ranks: tl.tensor,
    vocab_size: tl.tensor,
    num_chunks: tl.tensor,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_CHUNKS: tl.constexpr,
    PADDED_GROUPS: tl.constexpr,
    BEST_A_ROW: tl.constexpr,
    WORD_TOKENS: tl.constexpr,
) -> None:
    """Program b. parts: fp32 [B, C, 4] and part_ids: int32 [B, C, 2] as sampling.py names their columns."""
    index = tl.program_id(0).to(tl.int64)
    tl.store(token_ids + index, 0)
    tl.store(failed + index, 0)
    row = tl.load(rows + index).to(tl.int64)
    if row < 0:
        return
    integers += row * COLUMNS
    slots = tl.arange(0, PADDED_CHUNKS)
    inside = slots < num_chunks
    parts += (index * num_chunks + slots) * 4
    part_ids += (index * num_chunks + slots) * 2
    raw_peaks = tl.load(parts, mask=inside, other=float("-inf"))
    raw_peak = tl.max(raw_peaks, 0)
    peaks = tl.load(parts + 2, mask=inside, other=float("-inf"))
    peak = tl.max(peaks, 0)
    if (tl.abs(raw_peak) == float("inf")) | (tl.abs(peak) == float("inf")):
        masked_or_overflow = tl.where(peak == float("-inf"), _ALL_MASKED, _OVERFLOW)
        tl.store(failed + index, tl.where(tl.abs(raw_peak) == float("inf"), _NOT_FINITE, masked_or_overflow))
        return
    if tl.load(numbers + row * COLUMNS + TEMPERATURE) == 0.0:
        winners = tl.load(part_ids, mask=inside & (peaks == peak), other=_NO_ID)
    else:
        times = tl.load(parts + 3, mask=inside, other=float("inf"))
        winners = tl.load(part_ids + 1, mask=inside & (times == tl.min(times, 0)), other=_NO_ID)
    token = tl.min(winners, 0)
    tl.store(token_ids + index, token.to(tl.int64))
    tl.store(recent + row * WORD_TOKENS + (tl.load(positions + index) & (WORD_TOKENS - 1)), token)
    if (tl.load(integers + EDITS) & PENALTIES) != 0:
        counter = counts + row * vocab_size + token
        tl.store(counter, tl.minimum(tl.load(counter).to(tl.int32) + 1, _MOST_COUNTED).to(tl.int16))
    num_best = tl.load(integers + NUM_BEST)
    if num_best >= 0:
        row_logits = logits + index * vocab_size
        raw_weights = tl.load(parts + 1, mask=inside, other=0.0)
        log_weight = tl.log(tl.sum(raw_weights * tl.exp(raw_peaks - raw_peak), 0))
        value = tl.load(row_logits + token).to(tl.float32)
        tl.store(logprobs + index, value - raw_peak - log_weight)
        tl.store(ranks + index, 1 + _num_above(row_logits, value, vocab_size, 2 * TILE))
        groups = tl.arange(0, PADDED_GROUPS)
        num_groups = num_chunks * (TILE // GROUP)
        maxima = tl.load(raw_maxima + index * num_groups + groups, mask=groups < num_groups, other=float("-inf"))
        last = tl.full((), float("inf"), tl.float32)
        last_id = tl.full((), -1, tl.int32)
        rank = tl.full((), 0, tl.int32)
        for place in range(num_best):
            top = tl.max(maxima, 0)
            group = tl.min(tl.where(maxima == top, groups, _NO_ID), 0)
            ids = group * GROUP + tl.arange(0, GROUP)
            x = tl.load(row_logits + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
            # Of this group, what comes before the last one found is found already.
            x = tl.where((x < last) | ((x == last) & (ids > last_id)), x, float("-inf"))
            rank = tl.where(top == last, rank, place + 1)
            last = top
            last_id = tl.min(tl.where(x == top, ids, _NO_ID), 0)
            maxima = tl.where(groups == group, tl.max(tl.where(ids == last_id, float("-inf"), x), 0), maxima)
            out = index * BEST_A_ROW + place
            tl.store(best_ids + out, tl.where(top == float("-inf"), -1, last_id))
            tl.store(best_logprobs + out, top - raw_peak - log_weight)
            tl.store(best_ranks + out, rank)


@jit
def _num_above(source: tl.tensor, value: tl.tensor, vocab_size: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """How many of the row's logits are larger than `value`."""
    above = tl.zeros([TILE], tl.int32)
    for start in range(0, vocab_size, TILE):
        ids = start + tl.arange(0, TILE)
        x = tl.load(source + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
        above += (x > value).to(tl.int32)
    return tl.sum(above, 0)
