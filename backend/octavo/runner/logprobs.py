"""Log-probabilities of the best candidates at one position, from logits that nothing has changed yet."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from octavo.outputs import PositionLogprobs, TokenLogprob
from octavo.runner.truncation import top_tokens


def position_logprobs(logits: NDArray[np.float32], chosen: int, num_best: int) -> PositionLogprobs:
    """`chosen` first, then the `num_best` best without it, best first and equal ones by id; -1 takes the vocabulary.

    logits: fp32 [V], no NaN, at least one finite; not written. A rank is 1 + the number of tokens strictly more likely.
    """
    peak = float(logits.max())
    log_total = peak + math.log(np.exp(logits - np.float32(peak)).sum(dtype=np.float64))
    rank = 1 + int(np.count_nonzero(logits > logits[chosen]))
    found = [TokenLogprob(chosen, float(logits[chosen]) - log_total, rank)]
    if num_best == 0:
        return found
    count = len(logits) if num_best < 0 else min(num_best, len(logits))
    token_ids = top_tokens(logits, count)
    token_ids = token_ids[np.argsort(-logits[token_ids], kind="stable")][:count]
    values = logits[token_ids].astype(np.float64)
    ranks = np.searchsorted(-values, -values) + 1
    others = token_ids != chosen
    columns = (token_ids[others].tolist(), (values - log_total)[others].tolist(), ranks[others].tolist())
    found += map(TokenLogprob, *columns)
    return found
