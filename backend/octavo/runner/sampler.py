"""Sampler: from logits to tokens, in the exact order of the sampling contract. Knows no model and no KV cache.

Rows are treated one by one in a fixed order of operations, so a row's result never depends on the others, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from octavo.outputs import PositionLogprobs
from octavo.runner.counter_rng import NoiseSource
from octavo.runner.logprobs import position_logprobs
from octavo.runner.sampling_row import SamplingRow, Tokens
from octavo.runner.truncation import allowed_tokens

Floats = NDArray[np.float32]

NOT_FINITE = "the model computed numbers that are not finite"
ALL_MASKED = (
    "no token is left to choose from: allowed_token_ids, the grammar, bad_words and min_tokens together mask them all"
)
OVERFLOW = "logit_bias and penalties took the logits beyond the range of fp32"


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One token a row, except for rows in `failed` (index -> message), where it is None.

    `logprobs` holds the rows that asked: index -> candidates, the chosen token first.
    """

    token_ids: list[int | None]
    logprobs: dict[int, PositionLogprobs] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


class Sampler:
    """Chooses tokens for a vocabulary. Owns scratch memory; not for two threads at once."""

    def __init__(self, vocab_size: int) -> None:
        self._noise = NoiseSource(vocab_size)
        self._edited = np.empty(vocab_size, np.float32)
        self._scaled = np.empty(vocab_size, np.float32)

    def sample(self, logits: Tensor, rows: list[SamplingRow], tokens: list[Tokens]) -> SampledTokens:
        """Chooses the next token of each row.

        logits: fp32 [R, V], CPU, contiguous, not written. rows: R. tokens: R times int32 [n], the sequence so far.
        """
        table = logits.numpy()
        best = table.argmax(axis=1)
        peaks = table[np.arange(len(best)), best]
        sampled = SampledTokens(token_ids=best.tolist())
        # argmax finds a NaN before any number, and all -inf only where nothing is larger.
        healthy = np.isfinite(peaks).tolist()
        # Parameters at the end of fp32's range may overflow: what comes of it is checked where a token is chosen.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for index, row in enumerate(rows):
                if not healthy[index]:
                    self._fail(sampled, index, NOT_FINITE)
                    continue
                if row.edits or not row.params.greedy:
                    self._choose(sampled, index, table[index], row, tokens[index])
                chosen = sampled.token_ids[index]
                if row.params.logprobs is not None and chosen is not None:
                    sampled.logprobs[index] = position_logprobs(table[index], chosen, row.params.logprobs)
        return sampled

    def _choose(self, sampled: SampledTokens, index: int, logits: Floats, row: SamplingRow, tokens: Tokens) -> None:
        if row.edits:
            np.copyto(self._edited, logits)
            logits = self._edited
            row.edit(logits, tokens)
        best = int(logits.argmax())
        peak = logits[best]
        if not np.isfinite(peak):
            self._fail(sampled, index, ALL_MASKED if peak == -np.inf else OVERFLOW)
        elif row.params.greedy:
            sampled.token_ids[index] = best
        else:
            sampled.token_ids[index] = self._draw(logits, peak, row, position=len(tokens))

    def _draw(self, logits: Floats, peak: np.float32, row: SamplingRow, position: int) -> int:
        """The token with the largest sum of scaled logit and Gumbel noise: a draw from softmax over the allowed."""
        scaled = np.subtract(logits, peak, out=self._scaled)
        scaled /= np.float32(row.params.temperature)
        token_ids = allowed_tokens(scaled, row.params)
        scores = self._noise.gumbel(row.seed, position, token_ids)
        scores += scaled if token_ids is None else scaled[token_ids]
        winner = int(scores.argmax())
        return winner if token_ids is None else int(token_ids[winner])

    @staticmethod
    def _fail(sampled: SampledTokens, index: int, message: str) -> None:
        sampled.token_ids[index] = None
        sampled.failed[index] = message
