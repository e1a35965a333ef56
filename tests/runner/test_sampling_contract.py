"""One test (at least) for each row of the sampling contract that the sampler decides."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runner.reference_sampler import Case, Undecided, choose
from runner.sampling_driver import draw_many, pick, sample

from octavo.sampling_params import SamplingParams


def drawn(logits, count=300, **params):
    return set(draw_many(logits, count, **params))


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


def test_greedy_takes_the_best_and_the_lowest_id_of_equals():
    assert pick([1, 5, 3, 5], temperature=0) == 1
    assert pick([1, 5, 3, 6], temperature=0.9e-5) == 3


def test_temperature_just_above_greedy_counts_as_one_hundredth():
    logits = [0.0, -0.01]
    tiny, hundredth = (draw_many(logits, 400, temperature=t) for t in (2e-5, 0.01))
    assert tiny == hundredth
    assert 60 < sum(tiny) < 160  # token 1 has probability 1 / (1 + e)


def test_temperature_divides_the_logits():
    counts = np.bincount(draw_many([0.0, -2.0], 4000, temperature=2.0), minlength=2)
    assert counts[1] / 4000 == pytest.approx(1 / (1 + math.e), abs=0.03)


def test_top_k_keeps_ties_at_the_kth():
    logits = [3.0, 1.0, 3.0, 2.9, 3.0, 0.0]
    assert drawn(logits, top_k=2) == {0, 2, 4}
    assert drawn(logits, top_k=4) == {0, 2, 3, 4}
    assert drawn(logits, top_k=0, temperature=2.0) == drawn(logits, top_k=-1, temperature=2.0) == set(range(6))
    assert drawn(logits, top_k=100, temperature=2.0) == set(range(6))


def test_top_p_keeps_the_smallest_set_with_the_mass():
    logits = logs(0.1, 0.5, 0.3, 0.1)
    assert drawn(logits, top_p=0.4) == {1}
    assert drawn(logits, top_p=0.6) == {1, 2}
    assert drawn(logits, top_p=0.85) == {0, 1, 2}  # of equals, the lower id
    assert drawn(logits, top_p=1.0) == {0, 1, 2, 3}


def test_top_p_that_is_reached_exactly_adds_no_token():
    assert drawn(logs(0.5, 0.4, 0.1), top_p=0.9) == {0, 1}
    assert drawn([x + 17 for x in logs(0.5, 0.25, 0.25)], top_p=0.5) == {0}


def test_top_p_always_keeps_one_token():
    assert drawn(logs(0.4, 0.3, 0.3), top_p=1e-9) == {0}


def test_top_k_goes_first_and_top_p_counts_what_is_left():
    logits = logs(0.4, 0.2, 0.2 - 1e-3, 0.2 + 1e-3)
    assert drawn(logits, top_p=0.62) == {0, 1, 3}
    assert drawn(logits, top_k=2, top_p=0.66) == {0}  # 0.4 / 0.601 of what is left
    assert drawn(logits, top_k=2, top_p=0.67) == {0, 3}


def test_min_p_is_relative_to_the_best():
    logits = logs(0.5, 0.26, 0.24)
    assert drawn(logits, min_p=0.5) == {0, 1}
    assert drawn(logits, min_p=1.0) == {0}
    assert drawn(logs(0.5, 0.25, 0.25), min_p=0.5) == {0, 1, 2}  # on the limit is kept
    assert drawn(logits, min_p=0.0) == {0, 1, 2}


def test_min_p_is_taken_after_temperature():
    logits = logs(0.5, 0.2, 0.3)
    assert drawn(logits, min_p=0.6, temperature=1.0) == {0, 2}
    assert drawn(logits, min_p=0.6, temperature=2.0) == {0, 1, 2}


def test_repetition_penalty_covers_prompt_and_output_and_both_signs():
    assert pick([2.0, 1.5, -9], prompt=[0], temperature=0, repetition_penalty=1.5) == 1
    assert pick([2.0, 1.5, -9], prompt=[2], output=[0], temperature=0, repetition_penalty=1.5) == 1
    assert pick([-1.0, -1.4, -9], prompt=[0], temperature=0, repetition_penalty=1.5) == 1
    assert pick([0.5, 0.45, -9], prompt=[0], temperature=0, repetition_penalty=1.5) == 1
    assert pick([2.0, 2.5, -9], prompt=[0], temperature=0, repetition_penalty=0.5) == 0


def test_frequency_penalty_counts_output_only():
    assert pick([2.0, 1.5, 0], prompt=[0, 0, 0], temperature=0, frequency_penalty=2) == 0
    assert pick([2.0, 1.5, 0], prompt=[2], output=[0], temperature=0, frequency_penalty=0.4) == 0
    assert pick([2.0, 1.5, 0], prompt=[2], output=[0, 0], temperature=0, frequency_penalty=0.4) == 1
    assert pick([2.0, 2.5, 0], prompt=[2], output=[0, 0], temperature=0, frequency_penalty=-0.4) == 0


def test_presence_penalty_counts_once_and_output_only():
    assert pick([2.0, 1.5, 0], prompt=[0], temperature=0, presence_penalty=2) == 0
    assert pick([2.0, 1.5, 0], prompt=[2], output=[0, 0, 0], temperature=0, presence_penalty=0.4) == 0
    assert pick([2.0, 1.5, 0], prompt=[2], output=[0], temperature=0, presence_penalty=0.6) == 1


def test_logit_bias_comes_before_the_penalties():
    # (1 + 2) / 2 < 1.6; the other order would give 1 / 2 + 2.
    assert pick([1.0, 1.6], prompt=[0], temperature=0, logit_bias={0: 2.0}, repetition_penalty=2.0) == 1
    assert pick([1.0, 1.6], prompt=[1], temperature=0, logit_bias={0: 100.0}) == 0
    assert drawn([0.0, 0.0, 0.0], logit_bias={1: -100.0}) == {0, 2}


def test_allowed_token_ids_leave_only_themselves():
    assert pick([9, 1, 2, 8], temperature=0, allowed_token_ids=(1, 2)) == 2
    assert drawn([9.0, 1, 2, 8], allowed_token_ids=(1, 2)) == {1, 2}


def test_bias_does_not_bring_back_a_masked_token():
    assert pick([9, 1, 2], temperature=0, allowed_token_ids=(1, 2), logit_bias={0: 100.0}) == 2


def test_bad_words_mask_the_last_token_when_the_output_ends_with_the_rest():
    logits = [0, 1, 2, 3.0]
    assert pick(logits, temperature=0, bad_words=[[3]]) == 2
    assert pick(logits, output=[1, 2], temperature=0, bad_words=[[1, 2, 3]]) == 2
    assert pick(logits, output=[0, 1, 2], temperature=0, bad_words=[[1, 2, 3]]) == 2
    assert pick(logits, output=[1, 2, 0], temperature=0, bad_words=[[1, 2, 3]]) == 3
    assert pick(logits, output=[2, 2], temperature=0, bad_words=[[1, 2, 3]]) == 3
    assert pick(logits, output=[2], temperature=0, bad_words=[[1, 2, 3]]) == 3
    assert pick(logits, prompt=[1, 2], temperature=0, bad_words=[[1, 2, 3]]) == 3


def test_min_tokens_masks_eos_and_stop_token_ids_until_reached():
    logits = [0, 5, 4, 3.0]
    assert pick(logits, output=[0, 0], temperature=0, min_tokens=3, stop_token_ids=(1, 2)) == 3
    assert pick(logits, output=[0, 0, 0], temperature=0, min_tokens=3, stop_token_ids=(1, 2)) == 1
    assert pick(logits, prompt=[0] * 9, temperature=0, min_tokens=1, stop_token_ids=(1, 2)) == 3


def test_stop_ids_and_bad_words_beyond_the_vocabulary_mask_nothing():
    assert pick([1, 2], temperature=0, min_tokens=1, stop_token_ids=(7,), bad_words=[[7], [0, 9]]) == 1


def test_the_seed_decides_and_the_position_too():
    logits = [0.0] * 64
    rows = [draw_many(logits, 50, seed=seed) for seed in (1, 2, -1, 1)]
    assert rows[0] == rows[3]
    assert rows[0] != rows[1] != rows[2] != rows[0]
    assert len(set(rows[0])) > 20


def test_all_masked_rows_fail_with_a_reason_and_the_others_go_on():
    good = Case([1.0, 2.0], SamplingParams(temperature=0))
    masked = Case([1.0, 2.0], SamplingParams(min_tokens=1, allowed_token_ids=(1,)), stop_token_ids=(1,))
    sampled = sample([good, masked, good])
    assert sampled.token_ids == [1, None, 1]
    assert set(sampled.failed) == {1}
    assert "no token is left" in sampled.failed[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_p": 0.5, "logprobs": 2}, {"allowed_token_ids": (1,)}])
def test_rows_that_are_not_finite_fail_and_the_others_go_on(bad, params):
    good = Case([1.0, 2.0, 0.0], SamplingParams(temperature=0))
    sampled = sample([good, Case([1.0, 2.0, bad], SamplingParams(**params)), good])
    assert sampled.token_ids == [1, None, 1]
    assert sampled.failed == {1: "the model computed numbers that are not finite"}
    assert sampled.logprobs == {}


def test_minus_infinity_from_the_model_is_only_never_drawn():
    assert drawn([0.0, -math.inf, 0.0], temperature=2.0, top_p=0.999, top_k=3) == {0, 2}
    assert sample([Case([-math.inf] * 3, SamplingParams())]).failed


def test_penalties_that_overflow_fail_the_row():
    case = Case([1.0, 2.0], SamplingParams(repetition_penalty=1e-44), prompt=[1])
    assert "beyond the range" in sample([case]).failed[0]


TOKENS = st.integers(0, 11)
LOGITS = st.lists(st.integers(-10, 10).map(lambda x: x / 4), min_size=12, max_size=12)


@st.composite
def cases(draw):
    greedy = draw(st.booleans())
    params = SamplingParams(
        temperature=0 if greedy else draw(st.sampled_from([0.01, 0.3, 0.7, 1.0, 1.3, 2.0])),
        top_k=draw(st.sampled_from([-1, 0, 1, 2, 5, 12, 40])),
        top_p=draw(st.sampled_from([0.05, 0.31, 0.5, 0.77, 0.93, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.04, 0.21, 0.6, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.7, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, -1.1, 0.7])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, -0.9, 1.3])),
        logit_bias=draw(st.dictionaries(TOKENS, st.integers(-4, 4), max_size=3)),
        allowed_token_ids=draw(st.none() | st.lists(TOKENS, min_size=2).map(tuple)),
        min_tokens=draw(st.integers(0, 3)),
    )
    return Case(
        logits=draw(LOGITS),
        params=params,
        prompt=draw(st.lists(TOKENS, min_size=1, max_size=6)),
        output=draw(st.lists(TOKENS, max_size=6)),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        stop_token_ids=tuple(draw(st.lists(TOKENS, max_size=2))),
        bad_words=draw(st.lists(st.lists(TOKENS, min_size=1, max_size=3), max_size=2)),
    )


@pytest.mark.slow
@given(batch=st.lists(cases(), min_size=1, max_size=4))
@settings(deadline=None, derandomize=True, max_examples=400)
def test_any_batch_gives_what_the_slow_reference_gives(batch):
    sampled = sample(batch)
    for index, case in enumerate(batch):
        try:
            expected = choose(case)
        except Undecided:
            continue
        assert sampled.token_ids[index] == expected
