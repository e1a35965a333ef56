"""What a sequence asks of the device's sampler, from what it brought to its row. Knows no device and no logits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from octavo.core.step import NewRow
from octavo.kernels.sampling_tables import FOR_EVER, RowSampling


def row_sampling(new: NewRow, vocab_size: int) -> RowSampling:
    """The row of the sampling tables that a sequence fills. Ids beyond the vocabulary never come up, so they are left.

    Masks are one list of allowed tokens, min_tokens a bias of -inf on the tokens that would stop, for a while.
    """
    params = new.params
    words = [word for word in new.bad_words_token_ids if word and word[-1] < vocab_size]
    biases = [(token, value, FOR_EVER) for token, value in params.logit_bias.items()]
    if params.min_tokens > 0:
        until = new.num_prompt_tokens + params.min_tokens
        biases += [(token, -math.inf, until) for token in new.stop_token_ids if token < vocab_size]
    return RowSampling(
        temperature=0.0 if params.greedy else params.temperature,
        seed=new.seed,
        token_ids=np.array(new.token_ids, np.int32),
        num_prompt_tokens=new.num_prompt_tokens,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        num_best=params.logprobs,
        allowed=_allowed(new, [word[0] for word in words if len(word) == 1], vocab_size),
        biases=tuple(biases),
        bad_words=tuple(tuple(word) for word in words if len(word) > 1),
    )


def _allowed(new: NewRow, banned: list[int], vocab_size: int) -> NDArray[np.bool_] | None:
    listed = new.params.allowed_token_ids
    if listed is None and not banned and new.params.structured_outputs is None:
        return None
    allowed = np.full(vocab_size, listed is None, np.bool_)
    allowed[list(listed or ())] = True
    allowed[banned] = False
    return allowed
