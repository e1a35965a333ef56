from itertools import product

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from kernels.plain_paged import dense_attention, make_cache, random_sequence
from kernels.triton_support import interpreted

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.paged_prefill import PrefillRows, paged_prefill

FP8 = torch.float8_e4m3fn
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def make_batch(sequences, query_lens, block_size=16, window=None, cache_dtype=None, seed=0):
    """(queries, cache, rows). NaN wherever no query may look: spare blocks, ends of blocks, in front of the window."""
    cache, table = make_cache(sequences, query_lens, block_size, window, cache_dtype, seed)
    query = torch.cat([query[len(query) - n :] for (query, _, _), n in zip(sequences, query_lens, strict=True)])
    seq_lens = torch.tensor([len(keys) for _, keys, _ in sequences], dtype=torch.int32)
    return query, cache, PrefillRows(torch.tensor([0, *query_lens]).cumsum(0).int(), seq_lens, table)


def run(batch, spec, fill=float("nan")):
    query, cache, rows = batch
    out = torch.full_like(query, fill)
    # Lanes without a query divide by zero; their results are never stored.
    with interpreted(), np.errstate(all="ignore"):
        assert paged_prefill(query, cache, rows, spec, out) is out
    return out


def check(sequences, query_lens, spec, block_size=16, cache_dtype=None):
    got = run(make_batch(sequences, query_lens, block_size, spec.window, cache_dtype), spec)
    wanted = [dense_attention(sequence, n, spec) for sequence, n in zip(sequences, query_lens, strict=True)]
    torch.testing.assert_close(got, torch.cat(wanted), rtol=0, atol=TOLERANCE[got.dtype])


def ragged(dtype, heads, head_dim, block_size=16):
    lengths = [1, block_size - 1, block_size, block_size + 1, 63, 200]
    sequences = [random_sequence(length, heads, head_dim, dtype, i) for i, length in enumerate(lengths)]
    return sequences, [1, block_size - 1, 1, 5, 63, 70]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "head_dim"), [*product([torch.float32, torch.bfloat16], [24, 64, 80, 96, 128, 256]), (torch.float16, 128)]
)
def test_equals_dense_attention_for_every_head_dim(dtype, head_dim):
    check(*ragged(dtype, (2, 1), head_dim), AttentionSpec(head_dim**-0.5))


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [8, 16, 64, 128])
def test_equals_dense_attention_for_every_block_size(block_size):
    check(*ragged(torch.float32, (2, 1), 64, block_size), AttentionSpec(0.125), block_size)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 40])
def test_equals_dense_attention_for_every_group_size(group):
    sequences = [random_sequence(length, (2 * group, 2), 16, torch.float32, length) for length in (1, 40, 17)]
    check(sequences, [1, 12, 3], AttentionSpec(0.25))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 32), (torch.bfloat16, 64), (torch.float32, 128)])
def test_equals_dense_attention_in_both_directions(dtype, head_dim):
    lengths = [1, 31, 32, 33, 63, 64, 200]
    sequences = [random_sequence(length, (4, 2), head_dim, dtype, length) for length in lengths]
    check(sequences, lengths, AttentionSpec(head_dim**-0.5, causal=False))


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 64, 100, 1000])
def test_equals_dense_attention_within_a_window_and_reads_nothing_in_front_of_it(window):
    check(*ragged(torch.float32, (4, 2), 16), AttentionSpec(0.25, window))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_capped(dtype):
    check(*ragged(dtype, (4, 2), 64), AttentionSpec(1.0, window=90, soft_cap=5.0))


@pytest.mark.slow
def test_large_scores_do_not_overflow():
    query, keys, values = random_sequence(100, (2, 1), 16, torch.float32)
    for soft_cap in (None, 30.0):
        check([(query * 20, keys * 10, values)], [100], AttentionSpec(1.0, soft_cap=soft_cap))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp8_cache_holds_scaled_keys_and_values(dtype):
    sequences, query_lens = ragged(dtype, (4, 2), 64)
    stored = [(query, keys.to(FP8).to(dtype), values.to(FP8).to(dtype)) for query, keys, values in sequences]
    check(stored, query_lens, AttentionSpec(0.125, k_scale=0.5, v_scale=2.0), cache_dtype=FP8)


@pytest.mark.slow
def test_rows_may_begin_anywhere_in_the_queries_and_other_tokens_stay_as_they_are():
    sequences, query_lens = ragged(torch.float32, (2, 1), 16)
    query, cache, rows = make_batch(sequences, query_lens)
    in_front = 150
    moved = PrefillRows(rows.cu_seqlens_q + in_front, rows.seq_lens, rows.block_table)
    spec = AttentionSpec(0.25)
    got = run((torch.cat([query[:1].repeat(in_front, 1, 1), query]), cache, moved), spec, fill=7.0)
    assert (got[:in_front] == 7.0).all()
    assert torch.equal(got[in_front:], run((query, cache, rows), spec))


@pytest.mark.slow
def test_many_rows_find_their_tiles():
    query_lens = [3, 0, 1, 0, 0, 7] * 23
    sequences = [random_sequence(9, (2, 1), 16, torch.float32, i) for i in range(len(query_lens))]
    check(sequences, query_lens, AttentionSpec(0.25))


@pytest.mark.slow
def test_a_broken_key_makes_its_own_sequence_not_finite_and_no_other():
    broken, sound = (random_sequence(20, (2, 1), 16, torch.float32, seed) for seed in range(2))
    broken[1][3, 0, 5] = float("nan")
    got = run(make_batch([broken, sound], [1, 1]), AttentionSpec(0.25))
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (37, None), (100, 5.0)])
def test_a_query_is_bitwise_the_same_in_every_batch_chunk_and_place(monkeypatch, dtype, window, soft_cap):
    # The order of BLAS' additions depends on a row's place in the matrix; a tensor core's does not.
    monkeypatch.setattr(np, "matmul", lambda a, b, dtype=None: (a[:, :, None] * b[None]).sum(1))
    length, spec = 150, AttentionSpec(0.25, window, soft_cap)
    sequence = random_sequence(length, (6, 2), 16, dtype)
    whole = run(make_batch([sequence], [length], window=window), spec)
    for position in (0, 1, 31, 32, 63, 64, 100, 149):
        alone = [tuple(part[: position + 1] for part in sequence)]
        assert torch.equal(run(make_batch(alone, [1], window=window, seed=position), spec)[0], whole[position])
    for num_queries in (2, 10, 65):
        mates = [random_sequence(20 + 31 * i, (6, 2), 16, dtype, i + 1) for i in range(2)]
        batch = make_batch([mates[0], sequence, mates[1]], [13, num_queries, 7], window=window, seed=num_queries)
        assert torch.equal(run(batch, spec)[13 : 13 + num_queries], whole[length - num_queries :])
