import dataclasses

import numpy as np
import pytest
import torch
from kernels.plain_paged import dense_attention, make_cache, random_sequence

pytest.importorskip("triton")

from kernels.triton_support import captured, interpreted

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.decode_plan import CHUNK_SIZE, DecodeCapacity, plan_decode
from octavo.kernels.paged_attention import AttentionMetadata, paged_attention_gpu
from octavo.kernels.paged_decode import paged_decode

FP8 = torch.float8_e4m3fn
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
CPU = torch.device("cpu")


def poisoned(scratch):
    """Every number a launch must have written before another reads it is one that would be noticed."""
    for tensor in (scratch.partial_output, scratch.partial_lse):
        tensor.fill_(float("nan"))
    for plan in scratch.plans.values():
        for tensor in (plan.counts, plan.units, plan.combined):
            tensor.fill_(10**6)
    return scratch


def scratch_for(seq_lens, heads, head_dim, window):
    """Of just the size that is promised to be enough."""
    return poisoned(DecodeCapacity(len(seq_lens), max(seq_lens), heads, head_dim).allocate([window], CPU))


def run(sequences, spec, block_size=16, cache_dtype=None, seed=0):
    """The last query of each sequence; None is a row that pads the batch."""
    real = [sequence for sequence in sequences if sequence is not None]
    cache, real_table = make_cache(real, [1] * len(real), block_size, spec.window, cache_dtype, seed)
    query = torch.full((len(sequences), *real[0][0].shape[1:]), float("nan"), dtype=real[0][0].dtype)
    table = torch.full((len(sequences), real_table.shape[1]), 10**6, dtype=torch.int32)
    seq_lens = torch.zeros(len(sequences), dtype=torch.int32)
    rows = [row for row, sequence in enumerate(sequences) if sequence is not None]
    query[rows] = torch.stack([sequence[0][-1] for sequence in real])
    table[rows] = real_table
    seq_lens[rows] = torch.tensor([len(sequence[1]) for sequence in real], dtype=torch.int32)
    scratch = scratch_for(seq_lens.tolist(), *query.shape[1:], spec.window)
    out = torch.full_like(query, float("nan"))
    # Lanes beyond the query heads may divide by zero; they are never stored.
    with interpreted(), np.errstate(all="ignore"):
        plan_decode(seq_lens, scratch)
        assert paged_decode(query, cache, table, scratch, spec, out) is out
    return out


def check(sequences, spec, block_size=16, cache_dtype=None):
    got = run(sequences, spec, block_size, cache_dtype)
    wanted = torch.cat([dense_attention(sequence, 1, spec) for sequence in sequences])
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE[got.dtype])


def ragged(dtype, heads, head_dim, lengths=(1, 15, 16, 17, 63, CHUNK_SIZE, CHUNK_SIZE + 1, 700)):
    return [random_sequence(length, heads, head_dim, dtype, seed) for seed, length in enumerate(lengths)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_equals_dense_attention_for_every_head_dim(dtype, head_dim):
    check(ragged(dtype, (2, 1), head_dim, (1, 17, CHUNK_SIZE, 300)), AttentionSpec(head_dim**-0.5))


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128])
def test_equals_dense_attention_for_every_block_size(block_size):
    lengths = (1, block_size - 1, block_size, block_size + 1, 63, 1000)
    check(ragged(torch.float32, (2, 1), 64, lengths), AttentionSpec(0.125), block_size)


@pytest.mark.slow
def test_equals_dense_attention_over_more_chunks_than_are_combined_at_once():
    query, keys, values = random_sequence(4400, (2, 1), 128, torch.float32)
    # The last chunk weighs most: what was combined before it must shrink.
    keys[-40:] *= 2
    check([(query, keys, values)], AttentionSpec(0.1))


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 40])
def test_equals_dense_attention_for_every_group_size(group):
    check(ragged(torch.float32, (2 * group, 2), 64, (1, 40, 300)), AttentionSpec(0.125))


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 16, 17, CHUNK_SIZE, CHUNK_SIZE + 1, 300, 5000])
def test_equals_dense_attention_within_a_window_and_reads_nothing_in_front_of_it(window):
    check(ragged(torch.float32, (2, 1), 64), AttentionSpec(0.125, window))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_capped(dtype):
    check(ragged(dtype, (4, 2), 64, (1, 90, 300)), AttentionSpec(1.0, window=270, soft_cap=5.0))


@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_large_scores_do_not_overflow(soft_cap):
    query, keys, values = random_sequence(300, (2, 1), 64, torch.float32)
    check([(query * 20, keys * 10, values)], AttentionSpec(1.0, soft_cap=soft_cap))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp8_cache_holds_keys_and_values_divided_by_their_scales(dtype):
    sequences = []
    for query, keys, values in ragged(dtype, (4, 2), 64, (1, 90, 300)):
        sequences.append((query, (keys * 2).to(FP8).to(dtype), (values * 4).to(FP8).to(dtype)))
    check(sequences, AttentionSpec(0.125, k_scale=0.5, v_scale=0.25), cache_dtype=FP8)


def test_a_broken_key_makes_its_own_row_not_finite_and_no_other():
    broken, whole = (random_sequence(300, (2, 1), 64, torch.float32, seed) for seed in range(2))
    broken[1][3, 0, 5] = float("nan")
    got = run([broken, whole], AttentionSpec(0.125))
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


def test_rows_that_pad_the_batch_are_zero():
    sequence = random_sequence(300, (2, 1), 64, torch.bfloat16)
    got = run([None, sequence, None], AttentionSpec(0.125))
    assert not got[[0, 2]].any()
    assert torch.equal(got[1], run([sequence], AttentionSpec(0.125))[0])


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 290])
@pytest.mark.parametrize("length", [40, CHUNK_SIZE, 600])
def test_a_row_is_bitwise_the_same_in_every_batch_and_place(length, window):
    spec = AttentionSpec(0.125, window)
    sequence = random_sequence(length, (4, 2), 64, torch.bfloat16)
    alone = run([sequence], spec)[0]
    for num_mates in (1, 4):
        mates = [random_sequence(20 + 150 * i, (4, 2), 64, torch.bfloat16, i + 1) for i in range(num_mates)]
        got = run([*mates[:2], sequence, None, *mates[2:]], spec, seed=num_mates)
        assert torch.equal(got[len(mates[:2])], alone)


@pytest.mark.slow
def test_what_was_captured_once_serves_every_mix_of_lengths():
    spec = AttentionSpec(0.125)
    scratch = poisoned(DecodeCapacity(4, 700, 4, 64).allocate([None], CPU))
    query, out = torch.empty(2, 4, 4, 64, dtype=torch.bfloat16)
    cache = torch.empty(60, 2, 2, 16, 64, dtype=torch.bfloat16)
    table, seq_lens = torch.zeros(4, 50, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)

    def step():
        plan_decode(seq_lens, scratch)
        paged_decode(query, cache, table, scratch, spec, out)

    _, replay = captured(step)
    for lengths in ([700, 0, 0, 0], [1, 256, 257, 30], [40, 0, 513, 0]):
        sequences = ragged(torch.bfloat16, (4, 2), 64, [length for length in lengths if length])
        step_cache, step_table = make_cache(sequences, [1] * len(sequences))
        rows = torch.tensor(lengths).nonzero().flatten()
        cache.fill_(float("nan"))[: len(step_cache)] = step_cache
        table.fill_(10**6)[rows, : step_table.shape[1]] = step_table
        query[rows] = torch.stack([sequence[0][-1] for sequence in sequences])
        seq_lens.copy_(torch.tensor(lengths))
        out.fill_(float("nan"))
        with np.errstate(all="ignore"):
            replay()
        wanted = torch.zeros_like(out)
        wanted[rows] = torch.cat([dense_attention(sequence, 1, spec) for sequence in sequences])
        torch.testing.assert_close(out, wanted, rtol=0, atol=2e-2)


def mixed_batch(lengths, query_lens, block_size=16):
    """Sequences, queries and cache of a step whose rows bring so many queries."""
    sequences = [random_sequence(length, (4, 2), 64, torch.bfloat16, seed) for seed, length in enumerate(lengths)]
    cache, table = make_cache(sequences, query_lens, block_size)
    query = torch.cat([sequence[0][-n:] for sequence, n in zip(sequences, query_lens, strict=True)])
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=table,
        slot_mapping=torch.empty(0, dtype=torch.int64),
        max_seqlen_q=max(query_lens),
        max_seq_len=max(lengths),
        num_decode_rows=sum(n == 1 for n in query_lens),
    )
    return sequences, query, cache, metadata


@pytest.mark.slow
@pytest.mark.parametrize("query_lens", [[1, 1, 1], [1, 1, 40], [30, 7, 40]])
@pytest.mark.parametrize("with_scratch", [False, True])
def test_a_step_of_decode_rows_and_prompt_chunks_equals_dense_attention(query_lens, with_scratch):
    sequences, query, cache, metadata = mixed_batch([300, 17, 270], query_lens)
    spec = AttentionSpec(0.125)
    with interpreted(), np.errstate(all="ignore"):
        if with_scratch:
            scratch = poisoned(DecodeCapacity(3, 300, 4, 64).allocate([None], CPU))
            plan_decode(metadata.seq_lens[: metadata.num_decode_rows], scratch)
            metadata = dataclasses.replace(metadata, decode_scratch=scratch)
        got = paged_attention_gpu(query, cache, metadata, spec)
    wanted = [dense_attention(sequence, n, spec) for sequence, n in zip(sequences, query_lens, strict=True)]
    torch.testing.assert_close(got, torch.cat(wanted), rtol=0, atol=2e-2)


def test_decode_rows_never_go_through_the_prefill_kernel():
    def launched(query_lens):
        _, query, cache, metadata = mixed_batch([40, 30, 20], query_lens)
        return captured(lambda: paged_attention_gpu(query, cache, metadata, AttentionSpec(0.125)))[0]

    decode = ["write_plan", "_attend_units", "_combine_slots"]
    assert launched([1, 1, 1]) == decode
    assert launched([1, 1, 20]) == [*decode, "_prefill_kernel"]
    assert launched([30, 20, 20]) == ["_prefill_kernel"]


def test_the_plan_alone_decides_what_decode_rows_read():
    sequences, query, cache, metadata = mixed_batch([40, 30, 20], [1, 1, 20])
    scratch = poisoned(DecodeCapacity(2, 40, 4, 64).allocate([None], CPU))
    metadata = dataclasses.replace(metadata, decode_scratch=scratch)
    with interpreted(), np.errstate(all="ignore"):
        plan_decode(torch.zeros(2, dtype=torch.int32), scratch)
        got = paged_attention_gpu(query, cache, metadata, AttentionSpec(0.125))
    assert not got[:2].any()
    wanted = dense_attention(sequences[2], 20, AttentionSpec(0.125))
    torch.testing.assert_close(got[2:], wanted, rtol=0, atol=2e-2)


def expected_units(seq_lens, window):
    """The same as sets: what each row reads, chunk by chunk."""
    units = set()
    for row, length in enumerate(seq_lens):
        oldest = 0 if window is None else max(0, length - window)
        for chunk in range(oldest // CHUNK_SIZE, -(-length // CHUNK_SIZE)):
            units.add((row, max(oldest, chunk * CHUNK_SIZE), min(length, (chunk + 1) * CHUNK_SIZE)))
    return units


@pytest.mark.parametrize("window", [None, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("seq_lens", [[1], [256, 0, 257], [0, 0], [33000, 5, 0, 256, 512, 513, 40, 1000, 255]])
def test_the_plan_covers_every_position_once_whole_chunks_first(seq_lens, window):
    scratch = poisoned(DecodeCapacity(len(seq_lens) + 1, 33000, 1, 1).allocate([window], CPU))
    with interpreted():
        plan_decode(torch.tensor(seq_lens, dtype=torch.int32), scratch)
    plan = scratch.plans[window]
    num_units, num_combined = plan.counts.tolist()
    units = plan.units[:num_units].tolist()
    assert {(row, begin, end) for row, begin, end, _ in units} == expected_units(seq_lens, window)
    assert num_units == len(expected_units(seq_lens, window))
    is_rest = [end % CHUNK_SIZE > 0 for _, _, end, _ in units]
    assert is_rest == sorted(is_rest)

    slots = {row: sorted((begin, slot) for r, begin, _, slot in units if r == row) for row in range(len(seq_lens))}
    combined = {row: list(range(first, first + n)) for row, first, n, _ in plan.combined[:num_combined].tolist()}
    assert len(combined) == num_combined
    for row, pairs in slots.items():
        assert [slot for _, slot in pairs] == (combined[row] if len(pairs) > 1 else [-1] * len(pairs))
        assert (row in combined) == (len(pairs) != 1)
    used = [slot for *_, slot in units if slot >= 0]
    assert len(set(used)) == len(used) <= len(scratch.partial_lse)


@pytest.mark.slow
def test_one_scratch_serves_layers_with_different_windows():
    sequence = random_sequence(600, (2, 1), 64, torch.float32)
    specs = [AttentionSpec(0.125), AttentionSpec(0.125, 300), AttentionSpec(0.125, 20)]
    cache, table = make_cache([sequence], [1])
    scratch = poisoned(DecodeCapacity(1, 600, 2, 64).allocate([spec.window for spec in specs], CPU))
    with interpreted(), np.errstate(all="ignore"):
        plan_decode(torch.tensor([600], dtype=torch.int32), scratch)
        got = [paged_decode(sequence[0][-1:], cache, table, scratch, spec) for spec in specs]
    for spec, attended in zip(specs, got, strict=True):
        torch.testing.assert_close(attended, dense_attention(sequence, 1, spec), rtol=0, atol=2e-5)


def test_the_scratch_is_as_large_as_its_docstring_says():
    capacity = DecodeCapacity(max_num_seqs=256, max_model_len=32768, num_heads=32, head_dim=128)
    scratch = capacity.allocate([None], torch.device("meta"))
    assert round(scratch.partial_output.nbytes / 1e6) == 537
    windowed = dataclasses.replace(capacity, max_model_len=1 << 20).allocate([4096], torch.device("meta"))
    assert len(windowed.partial_output) == 256 * 17
