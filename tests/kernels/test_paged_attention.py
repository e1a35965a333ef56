import pytest
import torch
from kernels.paged import paged_batch, random_sequence
from kernels.plain_paged import dense_attention

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.paged_attention import paged_attention, paged_attention_reference

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-5}
DTYPES = [torch.bfloat16, torch.float32]


def check(batch, head_dim, window=None):
    spec = AttentionSpec(head_dim**-0.5, window)
    got = paged_attention(batch.query, batch.kv_cache, batch.metadata, spec)
    wanted = paged_attention_reference(batch.query, batch.kv_cache, batch.metadata, spec)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE[batch.query.dtype])


def ragged(dtype, block_size, heads=(4, 2), head_dim=16):
    lengths = [1, block_size - 1 or 1, block_size, block_size + 1, 63, 130]
    query_lens = [1, max(block_size - 1, 1), 1, min(block_size + 1, 5), 63, 7]
    sequences = [random_sequence(length, heads, head_dim, dtype, seed=i) for i, length in enumerate(lengths)]
    return paged_batch(sequences, query_lens, block_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 16, 24, 32, 64, 128])
def test_equals_reference_for_every_block_size(dtype, block_size):
    check(ragged(dtype, block_size), 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 24, 40, 64, 80, 96, 128, 256])
def test_equals_reference_for_every_head_dim(dtype, head_dim):
    check(ragged(dtype, 16, head_dim=head_dim), head_dim)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 5, 6, 7, 8, 40])
def test_equals_reference_for_every_group_size(dtype, group_size):
    check(ragged(dtype, 16, heads=(2 * group_size, 2)), 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [4, 16, 64])
@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 64, 100, 1000])
def test_equals_reference_within_a_sliding_window(dtype, block_size, window):
    check(ragged(dtype, block_size), 16, window)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_reference_on_long_sequences(dtype):
    sequences = [random_sequence(1000, (9, 3), 64, dtype, seed=i) for i in range(2)]
    check(paged_batch(sequences, [1, 70], 16), 64)


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("settings", [{"soft_cap": 0.7}, {"k_scale": 0.02, "v_scale": 3.0}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_soft_cap_and_an_fp8_cache_are_what_dense_attention_makes_of_them(dtype, settings, window):
    spec = AttentionSpec(0.25, window, **settings)
    cache_dtype = torch.float8_e4m3fn if "k_scale" in settings else dtype
    # Scores of an FP8 cache are about as large as those of a plain one.
    query, keys, values = random_sequence(70, (4, 2), 16, dtype, seed=0)
    stored = [(part / scale).to(cache_dtype) for part, scale in ((keys, spec.k_scale), (values, spec.v_scale))]
    batch = paged_batch([(query, *stored)], [20], 16)
    got = paged_attention(batch.query, batch.kv_cache, batch.metadata, spec)
    assert got.dtype == dtype
    wanted = dense_attention((query, *(part.to(dtype) for part in stored)), 20, spec)
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE[dtype])


def test_equals_torch_attention():
    query, keys, values = random_sequence(100, (4, 2), 32, torch.float32, seed=0)
    batch = paged_batch([(query, keys, values)], [100], 16)
    got = paged_attention(batch.query, batch.kv_cache, batch.metadata, AttentionSpec(0.3))
    parts = (part.transpose(0, 1) for part in (query, keys, values))
    wanted = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(got, wanted.transpose(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype):
    query, keys, values = random_sequence(40, (2, 1), 16, dtype, seed=0)
    check(paged_batch([(query * 20, keys * 10, values)], [40], 16), 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_key_makes_its_own_sequence_not_finite_and_no_other(dtype):
    broken, whole = (random_sequence(20, (2, 1), 16, dtype, seed=i) for i in range(2))
    broken[1][3, 0, 5] = float("nan")
    batch = paged_batch([broken, whole], [1, 1], 16)
    got = paged_attention(batch.query, batch.kv_cache, batch.metadata, AttentionSpec(0.25))
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 37, 100])
@pytest.mark.parametrize("head_dim", [24, 64])
def test_a_row_is_bitwise_the_same_in_every_batch_chunk_and_place(dtype, window, head_dim):
    heads, length = (6, 2), 150
    sequence = random_sequence(length, heads, head_dim, dtype, seed=0)
    spec = AttentionSpec(head_dim**-0.5, window)

    def run(batch):
        return paged_attention(batch.query, batch.kv_cache, batch.metadata, spec)

    alone = torch.cat(
        [
            run(paged_batch([tuple(part[: position + 1] for part in sequence)], [1], 16, placement_seed=position))
            for position in range(length)
        ]
    )
    for num_queries in (1, 2, 10, 11, 63, 64, 65, 150):
        mates = [random_sequence(20 + 31 * i, heads, head_dim, dtype, seed=i + 1) for i in range(4)]
        batch = paged_batch([*mates[:2], sequence, *mates[2:]], [1, 51, num_queries, 7, 1], 16, num_queries)
        first = int(batch.metadata.cu_seqlens_q[2])
        assert torch.equal(run(batch)[first : first + num_queries], alone[length - num_queries :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_many_sequences_of_one_token_each_equal_them_alone(dtype, num_threads):
    torch.set_num_threads(num_threads)
    spec = AttentionSpec(0.125)
    sequences = [random_sequence(1 + 17 * i, (6, 3), 64, dtype, seed=i) for i in range(20)]
    batch = paged_batch(sequences, [1] * 20, 16)
    got = paged_attention(batch.query, batch.kv_cache, batch.metadata, spec)
    for i, sequence in enumerate(sequences):
        alone = paged_batch([sequence], [1], 16, placement_seed=i)
        assert torch.equal(paged_attention(alone.query, alone.kv_cache, alone.metadata, spec)[0], got[i])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_do_not_change_a_bit(num_threads):
    batch = ragged(torch.bfloat16, 16)
    wanted = paged_attention(batch.query, batch.kv_cache, batch.metadata, AttentionSpec(0.25))
    torch.set_num_threads(num_threads)
    assert torch.equal(paged_attention(batch.query, batch.kv_cache, batch.metadata, AttentionSpec(0.25)), wanted)


def test_a_row_without_queries_is_skipped():
    sequences = [random_sequence(20, (2, 1), 16, torch.float32, seed=i) for i in range(3)]
    check(paged_batch(sequences, [2, 0, 1], 16), 16)
