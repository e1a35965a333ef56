"""Truncation of large vocabularies, where only a part is sorted, against a full sort."""

import numpy as np
import pytest

from octavo.runner.truncation import allowed_tokens, top_tokens
from octavo.sampling_params import SamplingParams

SIZES = [1, 2, 511, 512, 513, 1025, 20000]


def make_logits(size, kind):
    rng = np.random.default_rng(size)
    logits = {
        "normal": rng.normal(0, 3, size),
        "peaked": rng.exponential(1, size) * np.where(rng.random(size) < 0.01, 8, 1),
        "ties": rng.integers(-3, 3, size),
        "all equal": np.zeros(size),
        "masked": np.where(rng.random(size) < 0.9, -np.inf, rng.normal(0, 1, size)),
    }[kind].astype(np.float32)
    if np.isneginf(logits).all():
        logits[0] = 0
    return logits - logits.max()


@pytest.mark.parametrize("kind", ["normal", "peaked", "ties", "all equal", "masked"])
@pytest.mark.parametrize("size", SIZES)
def test_top_tokens_are_those_at_or_above_the_kth(size, kind):
    logits = make_logits(size, kind)
    for count in {1, 2, 50, 256, 257, 512, 1000, size}:
        if count <= size:
            kth = np.sort(logits)[size - count]
            assert np.array_equal(top_tokens(logits, count), np.flatnonzero(logits >= kth))


@pytest.mark.parametrize("kind", ["normal", "peaked", "ties", "all equal", "masked"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.9, 0.9995])
def test_the_nucleus_is_that_of_a_full_sort(size, kind, top_p):
    logits = make_logits(size, kind)
    order = np.argsort(-logits, kind="stable")
    mass = np.cumsum(np.exp(logits[order].astype(np.float64)))
    enough = int(np.searchsorted(mass / mass[-1], top_p - 4e-6)) + 1
    found = allowed_tokens(logits, SamplingParams(top_p=top_p))
    assert abs(len(found) - enough) <= 1 + size // 10000
    assert np.array_equal(found, np.sort(order[: len(found)]))


def test_nothing_asked_for_keeps_the_vocabulary_without_a_list():
    assert allowed_tokens(make_logits(512, "normal"), SamplingParams()) is None
    assert allowed_tokens(make_logits(512, "normal"), SamplingParams(top_k=512)) is None


def test_all_three_together_apply_to_what_the_others_left():
    logits = make_logits(20000, "peaked")
    together = allowed_tokens(logits, SamplingParams(min_p=0.01, top_k=300, top_p=0.7))
    left = np.flatnonzero((logits >= np.log(0.01)) & (logits >= np.sort(logits)[-300]))
    order = left[np.argsort(-logits[left], kind="stable")]
    mass = np.cumsum(np.exp(logits[order].astype(np.float64)))
    assert np.array_equal(together, np.sort(order[: int(np.searchsorted(mass, 0.7 * mass[-1])) + 1]))
