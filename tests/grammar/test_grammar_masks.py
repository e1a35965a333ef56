"""Masks on their way to the samplers: the host's and the device's take the same tokens, and neither waits for more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from grammar.byte_vocabulary import SetMask
from runner.fake_device import FakeDevice

from octavo.core.step import NewRow
from octavo.kernels.sampling_tables import SamplingTables, pack_bits
from octavo.runner.grammar_masks import GrammarMasks
from octavo.runner.input_batch import mask_bias
from octavo.runner.row_sampling import row_sampling
from octavo.runner.sampler import ALL_MASKED, Sampler
from octavo.runner.sampling_row import SamplingRow
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs

VOCAB_SIZE = 70
ASKED = StructuredOutputs("regex", "a")


def new_row(row: int = 0, **settings: object) -> NewRow:
    params = SamplingParams(temperature=0, structured_outputs=ASKED, **settings)  # type: ignore[arg-type]
    return NewRow(row, [1, 2], 2, [0], params, 0, (69,), [[5]], False)


def sampled(row: SamplingRow, mask: SetMask) -> tuple[int | None, str | None]:
    logits = torch.arange(VOCAB_SIZE, dtype=torch.float32)[None]
    row.follow_grammar(mask_bias(mask, VOCAB_SIZE))
    found = Sampler(VOCAB_SIZE).sample(logits, [row], [np.array([1, 2], np.int32)])
    return found.token_ids[0], found.failed.get(0)


def test_the_host_takes_the_best_token_that_grammar_and_request_allow() -> None:
    row = SamplingRow(new_row(), VOCAB_SIZE)
    assert sampled(row, SetMask([3, 4, 5])) == (4, None)  # 5 is a bad word
    assert sampled(row, SetMask([69, 3])) == (69, None)
    assert sampled(row, SetMask([7], num_bytes=1)) == (7, None)
    narrower = SamplingRow(new_row(allowed_token_ids=(8, 9)), VOCAB_SIZE)
    assert sampled(narrower, SetMask([3, 8])) == (8, None)


def test_where_nothing_is_allowed_the_row_fails() -> None:
    row = SamplingRow(new_row(min_tokens=5), VOCAB_SIZE)
    assert sampled(row, SetMask([69])) == (None, ALL_MASKED)  # min_tokens masks the only token left
    assert sampled(row, SetMask([], num_bytes=0)) == (None, ALL_MASKED)


def test_raw_logprobs_are_taken_before_the_mask() -> None:
    row = SamplingRow(new_row(logprobs=1), VOCAB_SIZE)
    row.follow_grammar(mask_bias(SetMask([3]), VOCAB_SIZE))
    logits = torch.arange(VOCAB_SIZE, dtype=torch.float32)[None]
    found = Sampler(VOCAB_SIZE).sample(logits, [row], [np.array([1, 2], np.int32)])
    chosen, best = found.logprobs[0]
    assert (chosen.token_id, chosen.rank) == (3, VOCAB_SIZE - 3)
    assert best.token_id == VOCAB_SIZE - 1


@pytest.mark.parametrize("allowed_token_ids", [None, (2, 3, 40)])
def test_the_devices_tables_hold_what_grammar_and_request_both_allow(allowed_token_ids: tuple[int, ...] | None) -> None:
    device = FakeDevice()
    tables = SamplingTables.allocate(3, VOCAB_SIZE, device.torch_device)
    masks = GrammarMasks(device, tables)
    news = [new_row(row, allowed_token_ids=allowed_token_ids) for row in (0, 2)]
    for new in news:
        asked = row_sampling(new, VOCAB_SIZE)
        tables.set_row(new.row, asked)
        masks.set_row(new, asked)
    masks.launch({0: SetMask([3, 5, 60]), 2: SetMask([40, 2], num_bytes=6), 1: SetMask([1])})
    device.synchronize()
    expected = {0: [3, 60], 2: [2, 40]} if allowed_token_ids is None else {0: [3], 2: [2, 40]}
    for row, token_ids in expected.items():
        flags = np.zeros(VOCAB_SIZE, np.bool_)
        flags[token_ids] = True
        assert tables.allowed_bits[row].tolist() == pack_bits(flags).tolist()
    assert not tables.allowed_bits[1].any()
