"""Which tokens may still be drawn: min_p, then top_k, then top_p. Knows one row of scaled logits; draws nothing.

Never sorts the vocabulary where a part of it is enough. Results depend on the row alone, bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from octavo.sampling_params import SamplingParams

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# What sums and logarithms of fp32 numbers may be off by: a token that lies on a limit up to this is within it.
_ROUNDING = 4e-6
_NUM_GROUPS = 512
_NUCLEUS_GUESSES = (64, 2048)


def allowed_tokens(scaled: Floats, params: SamplingParams) -> Integers | None:
    """Token ids that min_p, top_k and top_p leave, in ascending order; None for the whole vocabulary.

    scaled: fp32 [V], logits after temperature, shifted so that the largest is 0; no NaN. Not written.
    """
    token_ids = None
    # min_p and top_k are both floors under the logits, so they may be applied in either order: the cheaper goes first.
    if 0 < params.top_k < len(scaled):
        token_ids = top_tokens(scaled, params.top_k)
    if params.min_p > 0:
        floor = math.log(params.min_p) - _ROUNDING
        token_ids = np.flatnonzero(scaled >= floor) if token_ids is None else token_ids[scaled[token_ids] >= floor]
    if params.top_p < 1:
        token_ids = _nucleus(scaled, token_ids, params.top_p)
    return token_ids


def top_tokens(logits: Floats, count: int) -> Integers:
    """Ids of the `count` largest of `logits` (fp32 [V], no NaN, 0 < count <= V), ascending; ties are kept."""
    token_ids = np.flatnonzero(logits >= _floor_of_top(logits, count))
    values = logits[token_ids]
    top: Integers = token_ids[values >= np.partition(values, len(values) - count)[len(values) - count]]
    return top


def _floor_of_top(logits: Floats, count: int) -> np.float32:
    """A number that at least `count` of `logits` reach, and few more.

    Each group's maximum is one of the logits, so `count` of them reach the `count`-th largest maximum.
    """
    per_group = len(logits) // _NUM_GROUPS
    if count > _NUM_GROUPS // 2 or per_group == 0:
        return np.float32(np.partition(logits, len(logits) - count)[len(logits) - count])
    maxima = logits[: per_group * _NUM_GROUPS].reshape(per_group, _NUM_GROUPS).max(axis=0)
    return np.float32(np.partition(maxima, _NUM_GROUPS - count)[_NUM_GROUPS - count])


def _nucleus(scaled: Floats, token_ids: Integers | None, top_p: float) -> Integers:
    """The smallest part of `token_ids` (None: of all) that holds `top_p` of their probability, at least one token.

    Of equal probabilities at its edge, the lowest ids are taken.
    """
    values = scaled if token_ids is None else scaled[token_ids]
    mass = float(np.exp(values).sum(dtype=np.float64)) * (top_p - _ROUNDING)
    for guess in _NUCLEUS_GUESSES:
        if guess < len(values):
            likely = top_tokens(values, guess)
            part = _smallest_with_mass(values[likely], mass)
            if part is not None:
                return likely[part] if token_ids is None else token_ids[likely[part]]
    part = _smallest_with_mass(values, mass)
    assert part is not None
    return part if token_ids is None else token_ids[part]


def _smallest_with_mass(values: Floats, mass: float) -> Integers | None:
    """Ascending indices of the fewest `values` whose exponentials add up to `mass`; None if all together do not."""
    descending = np.sort(values)[::-1].copy()
    enough = int(np.searchsorted(np.cumsum(np.exp(descending), dtype=np.float64), mass))
    if enough == len(values):
        return None
    edge = descending[enough]
    kept = values > edge
    ties = np.flatnonzero(values == edge)
    kept[ties[: enough + 1 - np.count_nonzero(kept)]] = True
    return np.flatnonzero(kept)
