import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runner.reference_sampler import gumbel, uniform

from octavo.runner import counter_rng
from octavo.runner.counter_rng import NoiseSource
from octavo.sampling_params import child_seed

VOCAB_SIZE = 4096
SEEDS = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture(scope="module")
def source():
    return NoiseSource(VOCAB_SIZE)


def correlation(a, b):
    return abs(float(np.corrcoef(a, b)[0, 1])) * math.sqrt(len(a))


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


@given(seed=SEEDS, position=st.integers(0, 2**31 - 1), token=st.integers(0, VOCAB_SIZE - 1))
@settings(deadline=None, derandomize=True)
def test_uniforms_follow_the_documented_integers_bit_for_bit(source, seed, position, token):
    assert source.uniform(seed, position)[token] == uniform(seed, position, token)
    assert source.gumbel(seed, position)[token] == pytest.approx(gumbel(seed, position, token), rel=1e-5, abs=1e-6)


@given(seed=SEEDS, position=st.integers(0, 2**20), tokens=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1))
@settings(deadline=None, derandomize=True)
def test_noise_of_some_tokens_is_that_of_the_whole_vocabulary(source, seed, position, tokens):
    assert np.array_equal(source.gumbel(seed, position, np.array(tokens)), source.gumbel(seed, position)[tokens])


def test_the_smallest_and_the_largest_integer_lie_strictly_inside_zero_and_one():
    ends = np.array([1, 2**32 - 1], np.uint32).astype(np.float32) * counter_rng._TO_UNIT
    noise = counter_rng._gumbel_of_uniform(ends.copy())
    assert 0 < ends[0] < 2**-31
    assert 1 - 2**-23 < ends[1] < 1
    assert noise == pytest.approx([32 * math.log(2), -math.log(24 * math.log(2))], rel=1e-5)


def test_uniforms_fill_the_unit_interval_evenly(source):
    values = np.concatenate([source.uniform(3, position) for position in range(256)])
    counts, _ = np.histogram(values, bins=1024, range=(0, 1))
    assert chi_square(counts, len(values) / 1024) < 1023 + 4 * math.sqrt(2 * 1023)
    low_bits = np.bincount((values * 2**20).astype(np.int64) % 64, minlength=64)
    assert chi_square(low_bits, len(values) / 64) < 63 + 4 * math.sqrt(2 * 63)


def test_noise_is_standard_gumbel(source):
    values = np.concatenate([source.gumbel(5, position) for position in range(256)]).astype(np.float64)
    assert abs(values.mean() - 0.5772156649) < 4 * math.pi / math.sqrt(6 * len(values))
    assert values.var() == pytest.approx(math.pi**2 / 6, rel=0.01)


def test_each_token_wins_equally_often_over_positions():
    source, num_tokens, num_draws = NoiseSource(64), 64, 12800
    wins = np.bincount([source.gumbel(11, position).argmax() for position in range(num_draws)], minlength=num_tokens)
    assert chi_square(wins, num_draws / num_tokens) < 63 + 4 * math.sqrt(2 * 63)


@pytest.mark.parametrize("step", [1, 2, 16, 256, 4096])
def test_neighbouring_positions_seeds_and_tokens_are_not_correlated(source, step):
    here = [source.uniform(42, position) for position in range(8)]
    for position, values in enumerate(here):
        assert correlation(values, source.uniform(42, position + step)) < 4.5
        assert correlation(values, source.uniform(42 + step, position)) < 4.5
    flat = np.concatenate(here)
    assert correlation(flat[:-step], flat[step:]) < 4.5


def test_one_flipped_seed_bit_changes_half_of_all_bits(source):
    base = (source.uniform(0, 9) * 2**24).astype(np.int64)
    for bit in range(64):
        seed = (1 << bit) - (1 << 64 if bit == 63 else 0)
        changed = base ^ (source.uniform(seed, 9) * 2**24).astype(np.int64)
        share = sum(bin(value).count("1") for value in changed[:512]) / (512 * 24)
        assert 0.47 < share < 0.53


def test_negative_seeds_have_streams_of_their_own(source):
    streams = {source.uniform(seed, 0).tobytes() for seed in (-1, 1, -(2**63), 2**63 - 1, 0, -2)}
    assert len(streams) == 6


@given(seed=SEEDS)
@settings(deadline=None, derandomize=True)
def test_children_have_different_int64_keys(seed):
    keys = {child_seed(seed, index) for index in range(128)}
    assert len(keys) == 128
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert keys.isdisjoint({child_seed(seed + 1, index) for index in range(128)})


def test_children_draw_independently(source):
    rows = [source.uniform(child_seed(7, index), 0) for index in range(8)]
    for index in range(7):
        assert correlation(rows[index], rows[index + 1]) < 4.5
