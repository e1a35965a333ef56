import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runner.reference_sampler import Case
from runner.sampling_driver import sample

from octavo.runner.logprobs import position_logprobs
from octavo.sampling_params import SamplingParams


def slow_logprobs(logits, chosen, num_best):
    log_total = math.log(sum(math.exp(x) for x in logits))
    order = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    best = order if num_best < 0 else order[:num_best]
    listed = [chosen] + [t for t in best if t != chosen]
    return [(t, logits[t] - log_total, 1 + sum(x > logits[t] for x in logits)) for t in listed]


@given(
    logits=st.lists(st.integers(-30, 30).map(lambda x: x / 4), min_size=1, max_size=20),
    num_best=st.integers(-1, 25),
    data=st.data(),
)
@settings(deadline=None, derandomize=True)
def test_the_chosen_token_then_the_best_with_ranks(logits, num_best, data):
    chosen = data.draw(st.integers(0, len(logits) - 1))
    found = position_logprobs(np.array(logits, np.float32), chosen, num_best)
    for got, (token_id, logprob, rank) in zip(found, slow_logprobs(logits, chosen, num_best), strict=True):
        assert (got.token_id, got.rank) == (token_id, rank)
        assert got.logprob == pytest.approx(logprob, abs=1e-5)


def test_logprobs_come_before_masks_bias_penalties_and_temperature():
    logits = [1.0, 3.0, 2.0, 0.0]
    params = SamplingParams(
        logprobs=2, temperature=0.3, allowed_token_ids=(0, 3), logit_bias={3: 50.0}, presence_penalty=2.0
    )
    sampled = sample([Case(logits, params, output=[1])])
    expected = slow_logprobs(logits, 3, 2)
    assert [(c.token_id, c.rank) for c in sampled.logprobs[0]] == [(3, 4), (1, 1), (2, 2)]
    assert [c.logprob for c in sampled.logprobs[0]] == pytest.approx([e[1] for e in expected], abs=1e-5)


def test_zero_brings_only_the_sampled_token_and_minus_one_all():
    logits = np.random.default_rng(0).normal(0, 2, 700).astype(np.float32)
    assert [c.token_id for c in position_logprobs(logits, 3, 0)] == [3]
    whole = position_logprobs(logits, 3, -1)
    assert sorted(c.token_id for c in whole) == list(range(700))
    assert sum(math.exp(c.logprob) for c in whole) == pytest.approx(1, abs=1e-6)
    assert [c.logprob for c in whole[1:]] == sorted((c.logprob for c in whole[1:]), reverse=True)


def test_only_rows_that_ask_get_logprobs():
    cases = [Case([0.0, 1.0], SamplingParams(logprobs=k)) for k in (None, 0, 1)]
    assert {index: len(found) for index, found in sample(cases).logprobs.items()}.keys() == {1, 2}
