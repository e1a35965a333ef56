"""Masks, biases and penalties: logits as the sampler sees them, for the rows that ask for any.

Order: allowed tokens -> bad words -> min_tokens and logit_bias -> repetition, frequency, presence penalty. Every edit
of a token depends on that token alone, so one pass does them all. Knows no temperature and draws nothing.
"""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.language import jit, tl
from octavo.kernels.sampling_tables import (
    BAD_WORDS,
    BIASES,
    COLUMNS,
    EDITS,
    FREQUENCY,
    MASK,
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASES,
    NUM_BAD_WORDS,
    NUM_BIASES,
    PENALTIES,
    PRESENCE,
    REPETITION,
    SamplingTables,
)

_CHUNK = 2048
_MASKED = tl.constexpr(float("-inf"))


def edit_logits(logits: Tensor, edited: Tensor, tables: SamplingTables, positions: Tensor, rows: Tensor) -> None:
    """edited[b] = logits[b] after the edits that row rows[b] asks for; rows without edits are left as they are.

    logits: [B, V], fp32, bf16 or fp16; edited: fp32 [>= B, V]; rows: int32 [B], -1 for none; positions: int64 [B], the
    number of tokens that the row has. All contiguous. The operations and their rounding are the CPU's (no fused
    multiply-add).
    """
    num_rows, vocab_size = logits.shape
    _edit_logits[num_rows, -(-vocab_size // _CHUNK)](
        logits,
        edited,
        rows,
        positions,
        tables.numbers,
        tables.integers,
        tables.allowed_bits,
        tables.prompt_bits,
        tables.counts,
        tables.recent,
        tables.bias_tokens,
        tables.bias_values,
        tables.bias_until,
        tables.bad_words,
        vocab_size,
        CHUNK=_CHUNK,
        BIASES_A_ROW=MAX_BIASES,
        WORDS_A_ROW=MAX_BAD_WORDS,
        WORD_TOKENS=MAX_BAD_WORD_TOKENS,
        num_warps=4,
        enable_fp_fusion=False,
    )


@jit(do_not_specialize=["positions"])
def _edit_logits(
    logits: tl.tensor,
    edited: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    numbers: tl.tensor,
    integers: tl.tensor,
    allowed_bits: tl.tensor,
    prompt_bits: tl.tensor,
    counts: tl.tensor,
    recent: tl.tensor,
    bias_tokens: tl.tensor,
    bias_values: tl.tensor,
    bias_until: tl.tensor,
    bad_words: tl.tensor,
    vocab_size: tl.tensor,
    CHUNK: tl.constexpr,
    BIASES_A_ROW: tl.constexpr,
    WORDS_A_ROW: tl.constexpr,
    WORD_TOKENS: tl.constexpr,
) -> None:
    """Program (b, c): chunk c of the vocabulary in row b."""
    index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + index).to(tl.int64)
    if row < 0:
        return
    edits = tl.load(integers + row * COLUMNS + EDITS)
    if edits == 0:
        return
    start = tl.program_id(1) * CHUNK
    # As the bit tables have it: one line of 32 tokens a word.
    lines = start // 32 + tl.arange(0, CHUNK // 32)
    ids = lines[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = ids < vocab_size
    position = tl.load(positions + index)
    num_bit_words = (vocab_size + 31) // 32
    x = tl.load(logits + index * vocab_size + ids, mask=inside, other=_MASKED).to(tl.float32)
    if (edits & MASK) != 0:
        x = tl.where(_bits(allowed_bits + row * num_bit_words, lines, num_bit_words), x, _MASKED)
    if (edits & BAD_WORDS) != 0:
        words = bad_words + row * (WORDS_A_ROW * WORD_TOKENS)
        for word in range(tl.load(integers + row * COLUMNS + NUM_BAD_WORDS)):
            x = _mask_if_begun(x, ids, words + word * WORD_TOKENS, recent + row * WORD_TOKENS, position, WORD_TOKENS)
    if (edits & BIASES) != 0:
        first = row * BIASES_A_ROW
        slots = tl.arange(0, BIASES_A_ROW)
        listed = slots < tl.load(integers + row * COLUMNS + NUM_BIASES)
        tokens = tl.load(bias_tokens + first + slots, mask=listed, other=0)
        begin = tl.sum((listed & (tokens < start)).to(tl.int32))
        end = tl.sum((listed & (tokens < start + CHUNK)).to(tl.int32))
        for slot in range(begin, end):
            is_active = position < tl.load(bias_until + first + slot)
            is_biased = (ids == tl.load(bias_tokens + first + slot)) & is_active
            x = tl.where(is_biased, x + tl.load(bias_values + first + slot), x)
    if (edits & PENALTIES) != 0:
        count = tl.load(counts + row * vocab_size + ids, mask=inside, other=0).to(tl.float32)
        is_known = (count > 0) | _bits(prompt_bits + row * num_bit_words, lines, num_bit_words)
        x = _penalised(x, count, is_known, numbers + row * COLUMNS)
    tl.store(edited + index * vocab_size + ids, x, mask=inside)


@jit
def _bits(words: tl.tensor, lines: tl.tensor, num_words: tl.tensor) -> tl.tensor:
    """Flags [lines, 32]: bit t of each line's word."""
    bits = tl.load(words + lines, mask=lines < num_words, other=0)
    return ((bits[:, None] >> tl.arange(0, 32)[None, :]) & 1) != 0


@jit
def _mask_if_begun(
    x: tl.tensor, ids: tl.tensor, word: tl.tensor, recent: tl.tensor, position: tl.tensor, WORD_TOKENS: tl.constexpr
) -> tl.tensor:
    """Masks a bad word's last token if the tokens before it are the output's last.

    word     [ -1 .. -1 | prefix ................ | last token ]      column c is position - (WORD_TOKENS - 1) + c
    recent   a ring: the output token of position p in column p % WORD_TOKENS
    """
    columns = tl.arange(0, WORD_TOKENS)
    token_ids = tl.load(word + columns)
    past = tl.load(recent + ((position + 1 + columns) & (WORD_TOKENS - 1)))
    is_last = columns == WORD_TOKENS - 1
    differs = (token_ids != past) & (token_ids >= 0) & (columns < WORD_TOKENS - 1)
    last = tl.sum(tl.where(is_last, token_ids, 0))
    is_begun = tl.sum(differs.to(tl.int32)) == 0
    return tl.where((ids == last) & is_begun, _MASKED, x)


@jit
def _penalised(x: tl.tensor, count: tl.tensor, is_known: tl.tensor, numbers: tl.tensor) -> tl.tensor:
    """Repetition, frequency and presence penalty, in this order. x, count: fp32."""
    repetition = tl.load(numbers + REPETITION)
    repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    x = tl.where(is_known, repeated, x)
    x = x - tl.load(numbers + FREQUENCY) * count
    return x - tl.load(numbers + PRESENCE) * (count > 0).to(tl.float32)
