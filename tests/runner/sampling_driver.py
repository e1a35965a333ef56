"""Hands cases of the reference to the real sampler."""

import numpy as np
import torch
from runner.reference_sampler import Case

from octavo.core.step import NewRow
from octavo.runner.sampler import Sampler
from octavo.runner.sampling_row import SamplingRow
from octavo.sampling_params import SamplingParams


def new_row_of(case, row=0):
    return NewRow(
        row=row,
        token_ids=case.prompt + case.output,
        num_prompt_tokens=len(case.prompt),
        block_table=[],
        params=case.params,
        seed=case.seed,
        stop_token_ids=case.stop_token_ids,
        bad_words_token_ids=case.bad_words,
        prompt_logprobs=False,
    )


def row_of(case):
    return SamplingRow(new_row_of(case), len(case.logits))


def sample(cases):
    """All cases (of one vocabulary) in one batch."""
    logits = torch.tensor([case.logits for case in cases], dtype=torch.float32)
    before = logits.clone()
    tokens = [np.array(case.prompt + case.output, np.int32) for case in cases]
    sampled = Sampler(logits.shape[1]).sample(logits, [row_of(case) for case in cases], tokens)
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0)), "the sampler must not write the logits"
    return sampled


def pick(logits, prompt=(0,), output=(), seed=0, stop_token_ids=(), bad_words=(), **params):
    """The token for one row."""
    case = Case(
        list(logits), SamplingParams(**params), list(prompt), list(output), seed, tuple(stop_token_ids), list(bad_words)
    )
    sampled = sample([case])
    assert not sampled.failed, sampled.failed
    return sampled.token_ids[0]


def draw_many(logits, count, seed=1, **params):
    """`count` draws at successive positions of one seeded request."""
    case = Case(list(logits), SamplingParams(**params), seed=seed)
    row, sampler = row_of(case), Sampler(len(case.logits))
    table = torch.tensor([case.logits], dtype=torch.float32)
    tokens = np.zeros(count, np.int32)
    return [sampler.sample(table, [row], [tokens[:position]]).token_ids[0] for position in range(count)]
