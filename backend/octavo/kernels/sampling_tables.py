"""SamplingTables: what every row asks of the device's sampler, and what it remembers of the row's tokens.

Lives on the device, so that a captured graph finds new values in old places. The host writes a row when a sequence
takes it; the sampler itself notes the tokens that it draws. Knows no requests: the values come checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.kernels.language import tl

MAX_BIASES = 512
MAX_BAD_WORDS = 32
MAX_BAD_WORD_TOKENS = 8
MAX_BEST = 20
# What sums and logarithms of fp32 numbers may be off by: a token that lies on a limit up to this is within it.
ROUNDING = 4e-6
FOR_EVER = 2**31 - 1

# Columns of `numbers` and `integers`.
COLUMNS = tl.constexpr(8)
TEMPERATURE, TOP_P, MIN_P_FLOOR = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
REPETITION, FREQUENCY, PRESENCE = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
TOP_K, NUM_BEST, EDITS, NUM_BIASES, NUM_BAD_WORDS = (tl.constexpr(column) for column in range(5))
# Bits of the column EDITS.
MASK, BAD_WORDS, BIASES, PENALTIES = (tl.constexpr(1 << bit) for bit in range(4))
OFF_TOP_P = tl.constexpr(2.0)


@dataclass(frozen=True, slots=True)
class RowSampling:
    """What one sequence asks. Greedy is temperature 0; top_k 0 and num_best None are off.

    allowed: bool [V], tokens that may be drawn at all (allowed_token_ids, one-token bad words, a grammar), or None.
    biases: (token, value, until): added to the token's logit at positions below `until`, FOR_EVER for always; -inf for
    what min_tokens masks. bad_words: token ids of words of at least two tokens. token_ids: the tokens so far, of which
    the first num_prompt_tokens are the prompt.
    """

    temperature: float
    seed: int
    token_ids: NDArray[np.int32]
    num_prompt_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    num_best: int | None = None
    allowed: NDArray[np.bool_] | None = None
    biases: tuple[tuple[int, float, int], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the tables hold all of it. If not, the row is to be sampled on the host.

        Of bad words, the host may instead mask the last tokens of those that do not fit with `set_allowed`, step by
        step; then the row has to wait for its last token.
        """
        return (
            len(self.biases) <= MAX_BIASES
            and len(self.bad_words) <= MAX_BAD_WORDS
            and all(2 <= len(word) <= MAX_BAD_WORD_TOKENS for word in self.bad_words)
            and (self.num_best is None or 0 <= self.num_best <= MAX_BEST)
        )

    @property
    def has_penalties(self) -> bool:
        """Whether the row's tokens have to be counted."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


@dataclass(frozen=True, slots=True)
class SamplingTables:
    """Device state of max_num_seqs rows R for a vocabulary V; W = ceil(V / 32). Owned by the model runner.

    numbers: fp32 [R, 8], integers: int32 [R, 8], seeds: int64 [R]. allowed_bits, prompt_bits: int32 [R, W], token t is
    bit t % 32 of word t // 32. counts: int16 [R, V], how often a token is in the output; stops at 32,767. recent: int32
    [R, 8], the output token of position p in column p % 8, or -1. bias_*: [R, 512], ascending tokens. bad_words: int32
    [R, 32, 8], flush right, -1 before. Counts are most of it: 64 MiB for 256 rows and 128 k tokens, in all 75 MiB.
    """

    numbers: Tensor
    integers: Tensor
    seeds: Tensor
    allowed_bits: Tensor
    prompt_bits: Tensor
    counts: Tensor
    recent: Tensor
    bias_tokens: Tensor
    bias_values: Tensor
    bias_until: Tensor
    bad_words: Tensor

    @classmethod
    def allocate(cls, max_num_seqs: int, vocab_size: int, device: torch.device | str) -> SamplingTables:
        """Empty tables: every row is greedy until it is set."""

        def zeros(*columns: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(max_num_seqs, *columns, dtype=dtype, device=device)

        num_words = -(-vocab_size // 32)
        return cls(
            numbers=zeros(8, dtype=torch.float32),
            integers=zeros(8),
            seeds=zeros(dtype=torch.int64),
            allowed_bits=zeros(num_words),
            prompt_bits=zeros(num_words),
            counts=zeros(vocab_size, dtype=torch.int16),
            recent=zeros(MAX_BAD_WORD_TOKENS),
            bias_tokens=zeros(MAX_BIASES),
            bias_values=zeros(MAX_BIASES, dtype=torch.float32),
            bias_until=zeros(MAX_BIASES),
            bad_words=zeros(MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS),
        )

    def set_row(self, row: int, asked: RowSampling) -> None:
        """A sequence takes the row: everything that the sampler knows of the row is written anew.

        Copies on the current stream; large tables only where the row needs them.
        """
        assert asked.fits, "a row that the tables cannot hold is sampled on the host"
        vocab_size = self.counts.shape[1]
        _write(self.numbers[row], _numbers(asked))
        _write(self.integers[row], _integers(asked, vocab_size))
        self.seeds[row] = asked.seed
        _write(self.recent[row], _recent(asked))
        if asked.allowed is not None:
            self.set_allowed(row, asked.allowed)
        if asked.biases:
            tokens, values, until = zip(*sorted(asked.biases), strict=True)
            _write(self.bias_tokens[row, : len(tokens)], np.array(tokens, np.int32))
            _write(self.bias_values[row, : len(tokens)], np.array(values, np.float32))
            _write(self.bias_until[row, : len(tokens)], np.array(until, np.int32))
        if asked.bad_words:
            words = np.full((len(asked.bad_words), MAX_BAD_WORD_TOKENS), -1, np.int32)
            for word, token_ids in zip(words, asked.bad_words, strict=True):
                word[-len(token_ids) :] = token_ids
            _write(self.bad_words[row, : len(words)], words)
        if asked.has_penalties:
            prompt, output = np.split(asked.token_ids, [asked.num_prompt_tokens])
            seen = np.zeros(vocab_size, np.bool_)
            seen[prompt] = True
            _write(self.prompt_bits[row], pack_bits(seen))
            self.counts[row].zero_()
            if len(output):
                counts = np.bincount(output, minlength=vocab_size)
                _write(self.counts[row], np.minimum(counts, np.iinfo(np.int16).max).astype(np.int16))

    def set_allowed(self, row: int, allowed: NDArray[np.bool_]) -> None:
        """Another mask for a row that was set with one: a grammar's changes with every token. allowed: bool [V]."""
        _write(self.allowed_bits[row], pack_bits(allowed))

    def set_masks(self, rows: NDArray[np.int64], words: NDArray[np.int32]) -> None:
        """Like `set_allowed` for several rows at once. rows: [n]; words: int32 [n, W], as `pack_bits` makes them."""
        device = self.allowed_bits.device
        self.allowed_bits.index_copy_(0, _sent(rows, device), _sent(words, device))


def pack_bits(flags: NDArray[np.bool_]) -> NDArray[np.int32]:
    """int32 [ceil(V / 32)] from bool [V]: flag t is bit t % 32 of word t // 32."""
    packed = np.packbits(flags, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view(np.int32)


def _write(target: Tensor, source: NDArray[np.generic]) -> None:
    values = torch.from_numpy(source)
    # Only from pinned memory does a copy to a device not wait for what the device is doing.
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)


def _sent(source: NDArray[np.generic], device: torch.device) -> Tensor:
    values = torch.from_numpy(source)
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _numbers(asked: RowSampling) -> NDArray[np.float32]:
    top_p = asked.top_p - ROUNDING if asked.top_p < 1 else 2.0
    floor = np.log(asked.min_p) - ROUNDING if asked.min_p > 0 else -np.inf
    penalties = (asked.repetition_penalty, asked.frequency_penalty, asked.presence_penalty)
    with np.errstate(over="ignore"):  # a penalty beyond fp32 shows in the logits
        return np.array([asked.temperature, top_p, floor, *penalties, 0, 0], np.float64).astype(np.float32)


def _integers(asked: RowSampling, vocab_size: int) -> NDArray[np.int32]:
    wanted = (asked.allowed is not None, asked.bad_words, asked.biases, asked.has_penalties)
    edits = sum(1 << bit for bit, value in enumerate(wanted) if value)
    top_k = asked.top_k if asked.top_k < vocab_size else 0
    num_best = -1 if asked.num_best is None else min(asked.num_best, vocab_size)
    return np.array([top_k, num_best, edits, len(asked.biases), len(asked.bad_words), 0, 0, 0], np.int32)


def _recent(asked: RowSampling) -> NDArray[np.int32]:
    recent = np.full(MAX_BAD_WORD_TOKENS, -1, np.int32)
    end = len(asked.token_ids)
    for position in range(max(asked.num_prompt_tokens, end - MAX_BAD_WORD_TOKENS), end):
        recent[position % MAX_BAD_WORD_TOKENS] = asked.token_ids[position]
    return recent
