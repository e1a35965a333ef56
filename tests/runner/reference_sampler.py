"""The sampling contract, slow and obvious: float64, one Python loop a rule. Shares no code with the sampler."""

import math
from dataclasses import dataclass, field

import numpy as np

from octavo.sampling_params import SamplingParams

NEVER = -math.inf
CLOSE = 1e-4  # decisions nearer to a limit than this may go either way in fp32


@dataclass
class Case:
    logits: list[float]
    params: SamplingParams
    prompt: list[int] = field(default_factory=lambda: [0])
    output: list[int] = field(default_factory=list)
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    bad_words: list[list[int]] = field(default_factory=list)


class Undecided(Exception):
    """Two outcomes lie so close that rounding may pick either."""


def edited_logits(case):
    params, logits = case.params, [float(np.float32(x)) for x in case.logits]
    if params.allowed_token_ids is not None:
        logits = [x if t in params.allowed_token_ids else NEVER for t, x in enumerate(logits)]
    for *prefix, last in case.bad_words:
        if case.output[len(case.output) - len(prefix) :] == prefix and len(case.output) >= len(prefix):
            logits[last] = NEVER
    if len(case.output) < params.min_tokens:
        for token in case.stop_token_ids:
            logits[token] = NEVER
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    for token in set(case.prompt + case.output):
        x = logits[token]
        logits[token] = x / params.repetition_penalty if x > 0 else x * params.repetition_penalty
    for token in set(case.output):
        logits[token] -= params.frequency_penalty * case.output.count(token)
        logits[token] -= params.presence_penalty
    return logits


def kept_probabilities(case):
    """token -> probability after temperature, min_p, top_k and top_p, renormalised."""
    params = case.params
    scaled = {t: x / params.temperature for t, x in enumerate(edited_logits(case))}
    peak = max(scaled.values())
    weights = {t: math.exp(x - peak) for t, x in scaled.items() if x > NEVER}
    if params.min_p > 0:
        if any(abs(w / params.min_p - 1) < CLOSE and w != params.min_p for w in weights.values()):
            raise Undecided
        weights = {t: w for t, w in weights.items() if w >= params.min_p}
    if 0 < params.top_k < len(weights):
        kth = sorted(weights.values(), reverse=True)[params.top_k - 1]
        if any(0 < abs(w / kth - 1) < CLOSE for w in weights.values() if kth > 0):
            raise Undecided
        weights = {t: w for t, w in weights.items() if w >= kth}
    if params.top_p < 1:
        weights = _nucleus(weights, params.top_p)
    total = sum(weights.values())
    return {t: w / total for t, w in weights.items()}


def _nucleus(weights, top_p):
    total, mass, kept = sum(weights.values()), 0.0, {}
    for token, weight in sorted(weights.items(), key=lambda item: (-round(item[1], 9), item[0])):
        kept[token] = weight
        mass += weight
        if abs(mass / total - top_p) < CLOSE:
            raise Undecided
        if mass >= top_p * total:
            return kept
    return kept


def choose(case):
    """The one token that this case must give; None where the rules mask all of them."""
    if max(edited_logits(case)) == NEVER:
        return None
    if case.params.greedy:
        logits = edited_logits(case)
        best, second = sorted(logits, reverse=True)[:2]
        if best != second and best - second < CLOSE:
            raise Undecided
        return logits.index(best)
    position = len(case.prompt) + len(case.output)
    scores = {t: math.log(p) + gumbel(case.seed, position, t) for t, p in kept_probabilities(case).items() if p > 0}
    ranked = sorted(scores, key=scores.__getitem__, reverse=True)
    if len(ranked) > 1 and scores[ranked[0]] - scores[ranked[1]] < CLOSE:
        raise Undecided
    return ranked[0]


def uniform(seed, position, token):
    """The documented integer arithmetic, one token at a time, with Python's own integers."""
    key = _mix64(_mix64(seed) + position * 0x9E3779B97F4A7C15)
    x = _u32(token * 0x9E3779B9)
    x ^= x >> 16
    x = _u32(x * 0x7FEB352D)
    x ^= x >> 15
    x ^= _u32(key)
    x = _u32(x * 0x7FEB352D)
    x ^= x >> 15
    x = _u32(x + (key >> 32))
    x = _u32(x * 0x846CA68B)
    x ^= x >> 16
    return np.float32(x | 1) * np.float32((1 - 2.0**-24) / 2**32)


def gumbel(seed, position, token):
    return -math.log(-math.log1p(-float(uniform(seed, position, token))))


def _u32(x):
    return x % 2**32


def _mix64(x):
    x %= 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)
