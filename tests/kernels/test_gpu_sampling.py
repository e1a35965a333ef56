"""The device's sampler against the CPU's: the same sets, the same tokens, the same logprobs, alone and in a batch."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from kernels.device_sampling import Device, asked_by, sample_on_cpu, tokens_left
from kernels.triton_support import interpreted
from runner.reference_sampler import Case
from runner.sampling_driver import row_of
from triton.runtime.interpreter import InterpretedFunction

from octavo.kernels import counter_noise
from octavo.kernels.language import jit, tl
from octavo.kernels.sampled_row import ALL_MASKED, NOT_FINITE, OVERFLOW
from octavo.kernels.sampling_tables import MAX_BEST
from octavo.runner.counter_rng import NoiseSource
from octavo.runner.truncation import allowed_tokens
from octavo.sampling_params import SamplingParams

INF = math.inf
# Inside one chunk of the vocabulary and over several, at no round number.
VOCAB_SIZES = [12, 257, 9001]
EDITS = [
    {"allowed_token_ids": (1, 3, 5, 8)},
    {"logit_bias": {0: 2.5, 4: -100.0, 9: 1.0}},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6, "frequency_penalty": -0.7},
    {"frequency_penalty": 0.9, "presence_penalty": 0.4},
    {"min_tokens": 5},
    {"min_tokens": 5, "logit_bias": {2: 3.0}, "presence_penalty": 1.5, "repetition_penalty": 1.3},
]
LIMITS = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.9},
    {"top_p": 0.2, "temperature": 1.8},
    {"min_p": 0.05},
    {"top_k": 9, "top_p": 0.8, "min_p": 0.01, "temperature": 0.7},
]


def make_logits(size, kind, seed=0):
    rng = np.random.default_rng(size + seed)
    logits = {
        "normal": rng.normal(0, 3, size),
        "flat": rng.normal(0, 0.3, size),
        "peaked": rng.exponential(1, size) * np.where(rng.random(size) < 0.01, 8, 1),
        "ties": rng.integers(-3, 3, size) * 0.5,
        "all equal": np.full(size, 1.5),
        "masked": np.where(rng.random(size) < 0.9, -INF, rng.normal(0, 1, size)),
    }[kind].astype(np.float32)
    if np.isneginf(logits).all():
        logits[-1] = 0
    return logits


def make_case(logits, seed=0, output=(2, 4, 2), **params):
    return Case(logits, SamplingParams(**params), [1, 2, 9], list(output), seed, (0, 3), [[7], [4, 2, 5], [2, 4, 6]])


@jit
def _write_uniforms(out, seed, position, NUM_TOKENS: tl.constexpr):
    key = counter_noise.stream_key(tl.load(seed), tl.load(position))
    ids = tl.arange(0, NUM_TOKENS)
    tl.store(out + ids, counter_noise.uniform(key, ids))
    tl.store(out + NUM_TOKENS + ids, -tl.log(counter_noise.exponential(key, ids)))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345])
@pytest.mark.parametrize("position", [0, 1, 77, 2**31 + 5])
def test_noise_is_the_cpus_its_integers_bit_for_bit(seed, position):
    out = torch.full((2, 4096), torch.nan)
    with interpreted():
        InterpretedFunction(_write_uniforms.fn)[(1,)](out, torch.tensor(seed), torch.tensor(position), 4096)
    source = NoiseSource(4096)
    assert np.array_equal(out[0], source.uniform(seed, position))
    assert np.allclose(out[1], source.gumbel(seed, position), rtol=4e-7, atol=4e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kind"), [(257, "all equal"), (257, "masked"), (1000, "flat"), (4097, "ties")])
def test_what_is_left_to_draw_from_is_what_the_cpu_leaves(size, kind):
    logits = make_logits(size, kind)
    for params in (
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": size - 1},
        {"top_p": 1e-6},
        {"top_p": 0.97},
        {"min_p": 1.0},
        {"min_p": 0.2},
        {"top_k": 100, "top_p": 0.6, "min_p": 0.01, "temperature": 1.9},
        {"top_k": size // 2, "top_p": 0.5, "temperature": 0.4},
    ):
        case = Case(logits, SamplingParams(**params))
        scaled = (logits - logits.max()) / np.float32(case.params.temperature)
        expected = allowed_tokens(scaled, case.params)
        # So far below the best that no noise makes up for it: neither drawn nor listed.
        assert tokens_left(case) == expected[scaled[expected] > -32].tolist(), params


@pytest.mark.slow
@pytest.mark.parametrize("params", [{"top_k": 2}, {"top_p": 1e-6}, {"top_p": 0.3}], ids=str)
def test_neighbouring_numbers_are_told_apart(params):
    case = Case(np.arange(5, dtype=np.float32) * np.float32(-1e-45), SamplingParams(**params))
    assert tokens_left(case) == allowed_tokens(case.logits, case.params).tolist()


def test_what_cannot_be_left_still_counts_in_the_total():
    # 0.9 of 1 + 0.06 would be less than the best token's 1, but all the others together weigh 0.08.
    case = Case([0.0, math.log(0.06)] + [-9.4] * 998, SamplingParams(top_p=0.9))
    assert tokens_left(case) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "top_p"), [(12, 0.3), (9001, 0.6)])
def test_of_equal_tokens_at_the_edge_the_lowest_ids_are_drawn_from(size, top_p):
    cases = [Case([0.0] * size, SamplingParams(top_p=top_p), seed=seed) for seed in range(12)]
    drawn = Device(cases).sample().token_ids.tolist()
    assert drawn == sample_on_cpu(cases).token_ids
    assert size * top_p / 2 < max(drawn) < size * top_p


@pytest.mark.slow
def test_nothing_cut_off_means_every_token_may_be_drawn():
    assert asked_by(Case([0.0] * 12, SamplingParams(top_k=12, top_p=1.0))).fits
    cases = [Case([0.0] * 12, SamplingParams(top_k=top_k), seed=seed) for seed in range(8) for top_k in (0, 12, 500)]
    drawn = Device(cases).sample().token_ids.view(8, 3)
    assert (drawn == drawn[:, :1]).all()
    assert len(set(drawn[:, 0].tolist())) > 3


@pytest.mark.slow
@pytest.mark.parametrize("size", VOCAB_SIZES)
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_tokens_are_the_cpus_for_the_same_logits(size, kind):
    choices = [*LIMITS, *(limits | {"temperature": 0.0} for limits in LIMITS[2:5])]
    choices += [edits | limits for edits, limits in zip(EDITS, [*LIMITS[1:], {"temperature": 0.0}], strict=False)]
    cases = [make_case(make_logits(size, kind, i), seed=i * 7919, **params) for i, params in enumerate(choices)]
    sampled = Device(cases).sample()
    expected = sample_on_cpu(cases)
    assert not expected.failed and not sampled.failed.any()
    assert sampled.token_ids.tolist() == expected.token_ids


@pytest.mark.slow
def test_tokens_are_the_cpus_over_many_seeds():
    limits = [{}, {"temperature": 1.6}, {}, {"top_p": 0.9}]
    cases = [make_case(make_logits(300, "flat"), seed, **limits[seed % 4]) for seed in range(0, 64000, 1001)]
    assert Device(cases).sample().token_ids.tolist() == sample_on_cpu(cases).token_ids


@pytest.mark.slow
def test_tokens_are_the_cpus_in_a_real_vocabulary():
    cases = [make_case(make_logits(32000, "normal", i), i, **params) for i, params in enumerate(LIMITS)]
    assert Device(cases).sample().token_ids.tolist() == sample_on_cpu(cases).token_ids


@pytest.mark.slow
def test_draws_follow_the_distribution():
    logits, num_draws = [2.0, 1.5, 1.0, 0.0, -1.0, -INF], 120
    drawn = Device([Case(logits, SamplingParams(), seed=seed) for seed in range(num_draws)]).sample().token_ids
    weights = np.exp(logits)
    expected = num_draws * weights[:5] / weights.sum()
    counts = np.bincount(drawn, minlength=6)
    assert counts[5] == 0
    assert ((counts[:5] - expected) ** 2 / expected).sum() < 4 + 4 * math.sqrt(8)


@pytest.mark.slow
@pytest.mark.parametrize("size", [12, 4097])
def test_edits_round_as_the_cpus_do(size):
    # On both sides of where a chunk of 4097 tokens ends, and at the very end.
    at_the_ends = {"logit_bias": {size // 2 - 1: 2.5, size // 2: -7.3, size - 1: 0.1}}
    choices = [*EDITS, at_the_ends, at_the_ends | {"repetition_penalty": 1.1}]
    cases = [make_case(make_logits(size, "normal", i), temperature=0.0, **edits) for i, edits in enumerate(choices)]
    device = Device(cases)
    device.sample()
    expected = np.array([case.logits for case in cases], np.float32)
    for logits, case in zip(expected, cases, strict=True):
        row_of(case).edit(logits, np.array(case.prompt + case.output, np.int32))
    assert np.array_equal(device.scratch.edited, expected)


@pytest.mark.slow
def test_the_tables_follow_what_is_drawn():
    """Step by step, nothing but the device's own notes: penalties, bad words of several tokens, min_tokens."""
    logits = make_logits(12, "flat")
    params = {"repetition_penalty": 1.4, "frequency_penalty": 0.8, "presence_penalty": 0.3, "min_tokens": 12}
    cases = [make_case(logits, seed, (), **params) for seed in range(3)]
    never_thrice = [[int(logits.argmax())] * 3]
    cases += [Case(logits, SamplingParams(temperature=0), bad_words=never_thrice), make_case(logits, 0, ())]
    device = Device(cases, rows=[4, 0, 2, 1, 3])
    for _ in range(14):
        drawn = device.sample().token_ids.tolist()
        assert drawn == sample_on_cpu(cases).token_ids
        for case, token in zip(cases, drawn, strict=True):
            case.output.append(token)
    assert device.tables.counts[4].tolist() == np.bincount(cases[0].output, minlength=12).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_alone_and_in_a_batch_bit_for_bit(dtype):
    choices = [{"frequency_penalty": 0.4}, *LIMITS[3::2]]
    cases = [make_case(make_logits(4097, "normal", i), i, logprobs=3, **params) for i, params in enumerate(choices)]
    together = Device(cases, rows=[3, 1, 5, 0]).sample(dtype)
    for index, case in enumerate(cases):
        alone = Device([case]).sample(dtype)
        assert alone.token_ids[0] == together.token_ids[index]
        assert alone.logprobs[0] == together.logprobs[index]
        assert alone.ranks[0] == together.ranks[index]
        assert torch.equal(alone.best_logprobs[0, :3], together.best_logprobs[index, :3])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kind"), [(12, "ties"), (257, "all equal"), (4097, "normal"), (4097, "ties")])
def test_logprobs_and_ranks_are_the_cpus(size, kind):
    cases = [
        make_case(make_logits(size, kind, i), i, logprobs=num_best, presence_penalty=1.0)
        for i, num_best in enumerate([0, 1, 5, MAX_BEST])
    ]
    sampled, expected = Device(cases).sample(), sample_on_cpu(cases)
    for index, case in enumerate(cases):
        first, *others = expected.logprobs[index]
        assert (int(sampled.token_ids[index]), int(sampled.ranks[index])) == (first.token_id, first.rank)
        assert float(sampled.logprobs[index]) == pytest.approx(first.logprob, abs=1e-5)
        listed = slice(0, min(case.params.logprobs, size))
        columns = (sampled.best_ids, sampled.best_logprobs, sampled.best_ranks)
        found = list(zip(*(column[index, listed].tolist() for column in columns), strict=True))
        found = [each for each in found if each[0] != first.token_id]
        assert [each[::2] for each in found] == [(other.token_id, other.rank) for other in others]
        assert [each[1] for each in found] == pytest.approx([other.logprob for other in others], abs=1e-5)


def test_rows_whose_numbers_went_wrong_are_reported_and_noted_nowhere():
    good = [1.0, 2.0, 3.0, 0.0] * 3
    nothing_left = {"allowed_token_ids": (7,)}
    cases = [
        make_case([*good[:5], math.nan, *good[6:]]),
        make_case([*good[:5], INF, *good[6:]], top_k=3),
        make_case([-INF] * 12, temperature=0.0),
        make_case(good, **nothing_left),
        make_case(good, temperature=0.0, **nothing_left),
        make_case(good, temperature=0.0, repetition_penalty=1e-45),
        make_case([*good[:7], math.nan, *good[8:]], logit_bias={1: 1.0}),
        make_case(good, frequency_penalty=0.1),
    ]
    device = Device(cases)
    counts = device.tables.counts.clone()
    with np.errstate(over="ignore"):
        sampled = device.sample()
    expected = [NOT_FINITE] * 3 + [ALL_MASKED] * 2 + [OVERFLOW, NOT_FINITE, 0]
    assert sampled.failed.tolist() == expected
    assert sample_on_cpu(cases).failed.keys() == set(range(7))
    assert not sampled.token_ids[:7].any()
    assert torch.equal(device.tables.counts[:7], counts[:7])
    assert device.tables.counts[7].sum() == counts[7].sum() + 1


def test_a_place_that_samples_nothing_draws_token_0_and_changes_nothing():
    cases = [make_case(make_logits(12, "normal", i), presence_penalty=0.5) for i in range(3)]
    device = Device(cases, rows=[1, -1, 0])
    cases[1].logits[:] = math.nan
    before = device.tables.counts.clone()
    sampled = device.sample()
    assert sampled.token_ids[1] == 0 and not sampled.failed.any()
    assert (device.tables.counts != before).sum() == 2


def test_what_the_tables_cannot_hold_is_left_to_the_host():
    def fits(logprobs=None, **fields):
        case = Case([0.0] * 600, SamplingParams(logprobs=logprobs, logit_bias=fields.pop("logit_bias", {})), **fields)
        return asked_by(case).fits

    assert fits(logprobs=20) and not fits(logprobs=21) and not fits(logprobs=-1)
    assert fits(bad_words=[[1] * 8]) and not fits(bad_words=[[1] * 9])
    assert fits(bad_words=[[1, 2]] * 32) and not fits(bad_words=[[1, 2]] * 33)
    assert fits(logit_bias=dict.fromkeys(range(512), 1.0)) and not fits(logit_bias=dict.fromkeys(range(513), 1.0))
