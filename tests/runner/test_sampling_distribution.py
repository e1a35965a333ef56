"""Draws follow the distribution that the reference keeps: chi-square over fixed seeds."""

import math

import numpy as np
import pytest
import torch
from runner.reference_sampler import Case, kept_probabilities
from runner.sampling_driver import draw_many, row_of

from octavo.runner.sampler import Sampler
from octavo.sampling_params import SamplingParams, child_seed

LOGITS = [2.0, 1.5, 1.5, 1.0, 0.3, 0.0, -0.4, -0.5, -1.0, -1.2, -2.0, -2.5]
NUM_DRAWS = 8000


def assert_follows(draws, case):
    expected = kept_probabilities(case)
    counts = np.bincount(draws, minlength=len(case.logits))
    assert {t for t, n in enumerate(counts) if n} <= set(expected)
    chi = sum((counts[t] - len(draws) * p) ** 2 / (len(draws) * p) for t, p in expected.items())
    freedom = len(expected) - 1
    assert chi < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.12},
        {"temperature": 1.3, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [1, -77])
def test_draws_at_successive_positions_follow_the_distribution(params, seed):
    draws = draw_many(LOGITS, NUM_DRAWS, seed=seed, **params)
    assert_follows(draws, Case(LOGITS, SamplingParams(**params)))


@pytest.mark.slow
def test_first_tokens_of_many_seeds_and_children_follow_the_distribution():
    case = Case(LOGITS, SamplingParams())
    sampler, table, tokens = Sampler(len(LOGITS)), torch.tensor([LOGITS]), [np.zeros(5, np.int32)]
    for seeds in (range(NUM_DRAWS), [child_seed(i // 8, i % 8) for i in range(NUM_DRAWS)]):
        rows = [row_of(Case(LOGITS, case.params, seed=seed)) for seed in seeds]
        assert_follows([sampler.sample(table, [row], tokens).token_ids[0] for row in rows], case)


@pytest.mark.slow
def test_draws_from_a_large_vocabulary_follow_its_distribution():
    logits = np.random.default_rng(0).normal(0, 2, 20000).astype(np.float32)
    bands = (np.argsort(np.argsort(-logits)) // 2000).tolist()
    draws = draw_many(logits.tolist(), 3000, seed=3)
    weights = np.bincount(bands, weights=np.exp(logits.astype(np.float64)))
    expected = 3000 * weights / weights.sum()
    counts = np.bincount([bands[token] for token in draws], minlength=10)
    keep = expected > 5
    assert ((counts - expected) ** 2 / expected)[keep].sum() < keep.sum() + 4 * math.sqrt(2 * keep.sum())
