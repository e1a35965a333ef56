"""A row's result is its own: bit for bit the same alone, in any company, and under any number of threads."""

import numpy as np
import pytest
import torch
from runner.reference_sampler import Case
from runner.sampling_driver import row_of, sample

from octavo.runner.sampler import Sampler
from octavo.sampling_params import SamplingParams

VOCAB_SIZE = 5000
KINDS = [
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 1.2, "top_p": 0.9, "logprobs": 5},
    {"top_k": 40},
    {"min_p": 0.02, "top_p": 0.95, "top_k": 600},
    {"temperature": 0, "repetition_penalty": 1.2, "logprobs": 0},
    {"frequency_penalty": 0.3, "presence_penalty": 0.2, "logit_bias": {7: 3.0}},
    {"allowed_token_ids": tuple(range(100, 900)), "logprobs": 3},
]


def make_case(index):
    rng = np.random.default_rng(index)
    return Case(
        logits=rng.normal(0, 3, VOCAB_SIZE).astype(np.float32).tolist(),
        params=SamplingParams(**KINDS[index % len(KINDS)]),
        prompt=rng.integers(0, VOCAB_SIZE, 5 + index).tolist(),
        output=rng.integers(0, VOCAB_SIZE, index).tolist(),
        seed=int(rng.integers(-(2**63), 2**63)),
    )


@pytest.mark.slow
def test_a_row_gives_the_same_alone_and_among_32_others():
    cases = [make_case(index) for index in range(32)]
    together = sample(cases)
    backwards = sample(cases[::-1])
    for index, case in enumerate(cases):
        alone = sample([case])
        assert alone.token_ids == [together.token_ids[index]] == [backwards.token_ids[31 - index]]
        assert alone.logprobs.get(0) == together.logprobs.get(index) == backwards.logprobs.get(31 - index)


def test_the_number_of_threads_changes_nothing():
    cases = [make_case(index) for index in range(8)]
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            results.append(sample(cases))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1]


def test_counts_kept_token_by_token_equal_counts_made_at_once():
    case = make_case(5)
    case.params = SamplingParams(temperature=0, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5)
    output = [7, 9, 7, case.prompt[0], 7]
    grown = row_of(Case(case.logits, case.params, case.prompt, output[:1]))
    for token in output[1:]:
        grown.add_output(token)
    made = row_of(Case(case.logits, case.params, case.prompt, output))
    tokens = np.array(case.prompt + output, np.int32)
    a, b = (np.array(case.logits, np.float32) for _ in range(2))
    grown.edit(a, tokens)
    made.edit(b, tokens)
    assert np.array_equal(a, b)
    assert (a != np.array(case.logits, np.float32)).sum() == len(set(tokens.tolist()))


def test_a_sampler_keeps_nothing_between_calls():
    sampler, case = Sampler(VOCAB_SIZE), make_case(6)
    table, tokens = torch.tensor([case.logits]), np.array(case.prompt + case.output, np.int32)
    first = sampler.sample(table, [row_of(case)], [tokens])
    other = make_case(4)
    sampler.sample(torch.tensor([other.logits]), [row_of(other)], [np.array(other.prompt, np.int32)])
    assert sampler.sample(table, [row_of(case)], [tokens]) == first
