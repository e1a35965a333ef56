"""SamplingRow: what one sequence asks of the sampler, made once when it takes its row.

Edits logits up to the penalties; the sampler scales, truncates and draws. Parameters are valid already.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from octavo.core.step import NewRow

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Tokens = NDArray[np.int32]

_MASKED = np.float32(-np.inf)


class SamplingRow:
    """Owned by the input batch. `edits` says whether the logits change at all before they are scaled."""

    __slots__ = (
        "_bad_tokens",
        "_bad_words",
        "_bias",
        "_biased",
        "_forbidden",
        "_grammar_bias",
        "_num_prompt_tokens",
        "_penalties",
        "_stop_tokens",
        "edits",
        "params",
        "seed",
    )

    def __init__(self, new: NewRow, vocab_size: int) -> None:
        params = self.params = new.params
        self.seed = new.seed
        self._num_prompt_tokens = new.num_prompt_tokens
        self._forbidden = _all_but(params.allowed_token_ids, vocab_size)
        self._grammar_bias: Floats | None = None
        words = [word for word in new.bad_words_token_ids if word and word[-1] < vocab_size]
        self._bad_tokens = _ids(word[0] for word in words if len(word) == 1)
        self._bad_words = [word for word in words if len(word) > 1]
        self._stop_tokens = _ids(t for t in new.stop_token_ids if t < vocab_size)
        self._biased = _ids(params.logit_bias)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        assert all(t < vocab_size for t in params.logit_bias), "token ids beyond the vocabulary are refused at submit"
        self._penalties = Penalties(new, vocab_size) if Penalties.needed(new) else None
        self.edits = (
            self._forbidden is not None
            or params.structured_outputs is not None
            or bool(words)
            or params.min_tokens > 0
            or bool(params.logit_bias)
            or self._penalties is not None
        )

    def follow_grammar(self, bias: Floats) -> None:
        """Which tokens may come next, until the next call: fp32 [V], 0 or -inf."""
        self._grammar_bias = bias

    def edit(self, logits: Floats, token_ids: Tokens) -> None:
        """Masks, bias and penalties, in the contract's order, in place.

        logits: fp32 [V]; token_ids: int32 [n], the sequence so far, prompt and output. A bad word counts as begun only
        by output tokens: what the caller wrote is not held against the model.
        """
        params = self.params
        if self._forbidden is not None:
            np.copyto(logits, _MASKED, where=self._forbidden)
        if self._grammar_bias is not None:
            logits += self._grammar_bias
        output = token_ids[self._num_prompt_tokens :]
        logits[self._bad_tokens] = _MASKED
        for word in self._bad_words:
            if _ends_with(output, word[:-1]):
                logits[word[-1]] = _MASKED
        if len(output) < params.min_tokens:
            logits[self._stop_tokens] = _MASKED
        logits[self._biased] += self._bias
        if self._penalties is not None:
            self._penalties.apply(logits)

    def add_output(self, token_id: int) -> None:
        """Takes note of the row's next token."""
        if self._penalties is not None:
            self._penalties.add_output(token_id)


class Penalties:
    """Counts of one sequence's tokens, kept up to date token by token, and the penalties that follow from them.

    `_ids[:_num_ids]` are the distinct tokens of prompt and output; `_counts` [V] counts the output only.
    """

    __slots__ = ("_counts", "_ids", "_num_ids", "_params", "_seen")

    def __init__(self, new: NewRow, vocab_size: int) -> None:
        self._params = new.params
        self._seen = np.zeros(vocab_size, np.bool_)
        self._seen[new.token_ids] = True
        known = np.flatnonzero(self._seen)
        self._ids = np.empty(vocab_size, np.int64)
        self._num_ids = len(known)
        self._ids[: len(known)] = known
        self._counts = np.zeros(vocab_size, np.int32)
        np.add.at(self._counts, np.array(new.token_ids[new.num_prompt_tokens :], np.int64), 1)

    @staticmethod
    def needed(new: NewRow) -> bool:
        """Whether any of the three penalties does something."""
        params = new.params
        return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0

    def add_output(self, token_id: int) -> None:
        """Counts one output token."""
        self._counts[token_id] += 1
        if not self._seen[token_id]:
            self._seen[token_id] = True
            self._ids[self._num_ids] = token_id
            self._num_ids += 1

    def apply(self, logits: Floats) -> None:
        """Repetition, frequency and presence penalty, in this order, on fp32 [V], in place."""
        ids = self._ids[: self._num_ids]
        values = logits[ids]
        repetition = np.float32(self._params.repetition_penalty)
        if repetition != 1:
            values = np.where(values > 0, values / repetition, values * repetition)
        counts = self._counts[ids]
        values -= np.float32(self._params.frequency_penalty) * counts.astype(np.float32)
        values -= np.float32(self._params.presence_penalty) * (counts > 0)
        logits[ids] = values


def _ids(token_ids: Iterable[int]) -> Integers:
    return np.fromiter(token_ids, np.int64)


def _all_but(token_ids: tuple[int, ...] | None, vocab_size: int) -> NDArray[np.bool_] | None:
    if token_ids is None:
        return None
    assert max(token_ids) < vocab_size, "token ids beyond the vocabulary are refused at submit"
    forbidden = np.ones(vocab_size, np.bool_)
    forbidden[list(token_ids)] = False
    return forbidden


def _ends_with(output: Tokens, prefix: list[int]) -> bool:
    return len(output) >= len(prefix) and output[-len(prefix) :].tolist() == prefix
