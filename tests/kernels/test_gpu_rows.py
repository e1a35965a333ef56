import re

import pytest
import torch

pytest.importorskip("triton")

from kernels.interpreted_rows import random, run
from kernels.paged import metadata_of
from kernels.triton_support import compiled_kernels

from octavo.kernels.embedding import embedding_gpu, embedding_reference
from octavo.kernels.kv_layout import read_blocks
from octavo.kernels.paged_attention import AttentionMetadata
from octavo.kernels.quantise_rows import FP8, quantise_rows_gpu, quantise_rows_reference
from octavo.kernels.rms_norm import rms_norm_fp8_gpu, rms_norm_gpu, rms_norm_reference
from octavo.kernels.rope_kv_write import HeadNorm, WriteForm, rope_kv_write_fp8, rope_kv_write_reference
from octavo.kernels.rope_kv_write_gpu import rope_kv_write_gpu
from octavo.kernels.silu_and_mul import silu_and_mul_fp8_gpu, silu_and_mul_gpu, silu_and_mul_reference

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [(1, 1), (1, 576), (3, 15), (5, 17), (17, 1000), (2, 4096)]
TOLERANCE = {
    torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
}
# One step of FP8 e4m3, relative, and the smallest number but zero.
FP8_TOLERANCE = {"rtol": 2**-3, "atol": 2**-9}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_equals_reference(dtype, size):
    x, weight = random(*size, dtype=dtype), random(size[1], dtype=dtype, seed=1)
    wanted = rms_norm_reference(x, weight, 1e-5)
    torch.testing.assert_close(run(rms_norm_gpu, x, None, weight, 1e-5), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_residual_takes_the_sum_and_the_norm_is_of_the_sum(dtype, size):
    x, residual, weight = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate((size, size, size[1:])))
    total = residual + x
    got = run(rms_norm_gpu, x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    torch.testing.assert_close(got, rms_norm_reference(total, weight, 1e-5), **TOLERANCE[dtype])


@pytest.mark.parametrize("is_dynamic", [True, False])
@pytest.mark.parametrize("size", [(1, 576), (5, 17), (3, 1000)])
def test_a_quantised_norm_is_the_norm_in_fp8(size, is_dynamic):
    dtype = torch.bfloat16
    x, residual, weight = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate((size, size, size[1:])))
    total = residual + x
    scale = None if is_dynamic else torch.tensor([0.02])
    wanted, wanted_scale = quantise_rows_reference(rms_norm_reference(total, weight, 1e-5), scale)
    got, got_scale = run(rms_norm_fp8_gpu, x, residual, weight, 1e-5, scale)
    assert torch.equal(residual, total)
    assert got.dtype == wanted.dtype == FP8
    torch.testing.assert_close(got_scale, wanted_scale, rtol=1e-2, atol=0)
    torch.testing.assert_close(got.float(), wanted.float(), **FP8_TOLERANCE)


# The interpreter's maximum of a row of nothing else says so.
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_quantised_norm_of_zeros_large_numbers_and_what_is_not_a_number():
    x = torch.ones(3, 20, dtype=torch.bfloat16)
    x[0] = 0
    x[2, 5] = float("nan")
    weight = torch.linspace(-8, 8, 20).bfloat16()
    for scale in (None, torch.tensor([0.01])):
        got, _ = run(rms_norm_fp8_gpu, x, None, weight, 1e-5, scale)
        assert (got[0].float() == 0).all()
        assert (got[1].float()[[0, -1]] == torch.tensor([-448.0, 448.0])).all()
        assert got[2].isnan().all()


@pytest.mark.parametrize("with_residual", [True, False])
def test_a_norm_keeps_what_is_not_finite(with_residual):
    x = torch.ones(2, 20)
    x[0, 3] = float("nan")
    got = run(rms_norm_gpu, x, torch.zeros(2, 20) if with_residual else None, torch.ones(20), 1e-5)
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [*SIZES, (2, 3000)])
def test_silu_and_mul_equals_reference(dtype, size):
    gate_up = random(size[0], 2 * size[1], dtype=dtype) * 4
    wanted = silu_and_mul_reference(gate_up)
    torch.testing.assert_close(run(silu_and_mul_gpu, gate_up), wanted, **TOLERANCE[dtype])


def test_silu_and_mul_of_extreme_gates():
    gate_up = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 1e30, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    wanted = torch.tensor([[0.0, 0.0, 0.0, 0.0, 180.0, 2e30]])
    torch.testing.assert_close(run(silu_and_mul_gpu, gate_up), wanted, atol=1e-30, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_is_computed_alone(dtype):
    x, weight = random(20, 576, dtype=dtype), random(576, dtype=dtype, seed=1)
    for operation in (silu_and_mul_gpu, lambda rows: rms_norm_gpu(rows, None, weight, 1e-5)):
        alone = torch.cat([run(operation, x[i : i + 1]) for i in range(20)])
        assert torch.equal(alone, run(operation, x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 576, 1500])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_an_embedding_takes_token_ids_of_the_host_and_of_the_device(dtype, width, id_dtype):
    table = random(30, width, dtype=dtype)
    token_ids = torch.tensor([0, 29, -1, 7, -3, 7], dtype=id_dtype)
    sampled = torch.tensor([5, -100, 11], dtype=id_dtype)
    got = run(embedding_gpu, table, token_ids, sampled)
    assert torch.equal(got, table[[0, 29, 5, 7, 11, 7]])
    assert torch.equal(got, embedding_reference(table, token_ids, sampled))
    known = token_ids.clamp(min=0)
    assert torch.equal(run(embedding_gpu, table, known), embedding_reference(table, known))


def rope_case(dtype, head_dim, normed, heads=(6, 2), block_size=16):
    """(qkv, positions, table, metadata, norm, number of blocks): three sequences with shuffled blocks."""
    query_lens, seq_lens, num_blocks = [1, 7, 2], [5, 7, 40], 40
    table = (torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(0)) + 1).int()[:39].view(3, 13)
    metadata = metadata_of(query_lens, [min(n, 13 * block_size) for n in seq_lens], table, block_size)
    num_tokens = sum(query_lens)
    qkv = random(num_tokens, (heads[0] + 2 * heads[1]) * head_dim, dtype=dtype)
    angles = random(num_tokens * 7, 2, head_dim // 2, dtype=torch.float32, seed=1)
    norm = HeadNorm(*(random(head_dim, dtype=dtype, seed=i) for i in (2, 3)), 1e-6) if normed else None
    return qkv, torch.arange(num_tokens) * 7, angles, metadata, norm, num_blocks


def empty_cache(num_blocks, num_kv_heads, block_size, head_dim, dtype):
    return torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), float("nan")).to(dtype)


def check_same_cache(plain, cache, tolerance):
    """plain: as a GPU has it. cache: in the layout of the CPU's kernels."""
    parts = read_blocks(cache, torch.arange(len(cache)))
    for i, part in enumerate(parts):
        got = plain[:, i].transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(got.float(), part.float(), **tolerance, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [8, 16, 128])
@pytest.mark.parametrize("head_dim", [24, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_kv_write_equals_reference(dtype, block_size, head_dim, normed):
    *inputs, metadata, norm, num_blocks = rope_case(dtype, head_dim, normed, block_size=block_size)
    plain, cache = (empty_cache(num_blocks, 2, block_size, head_dim, dtype) for _ in range(2))
    got = run(rope_kv_write_gpu, *inputs, plain, metadata, WriteForm(norm))
    wanted = rope_kv_write_reference(*inputs, cache, metadata, norm)
    torch.testing.assert_close(got, wanted, **TOLERANCE[dtype])
    check_same_cache(plain, cache, TOLERANCE[dtype])
    assert plain.isfinite().sum() == 2 * 10 * 2 * head_dim


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(1, 1), (9, 3), (40, 40), (71, 1)])
def test_rope_kv_write_of_every_number_of_heads(heads):
    *inputs, metadata, norm, num_blocks = rope_case(torch.float32, 64, True, heads)
    plain, cache = (empty_cache(num_blocks, heads[1], 16, 64, torch.float32) for _ in range(2))
    got = run(rope_kv_write_gpu, *inputs, plain, metadata, WriteForm(norm))
    wanted = rope_kv_write_reference(*inputs, cache, metadata, norm)
    torch.testing.assert_close(got, wanted, **TOLERANCE[torch.float32])
    check_same_cache(plain, cache, TOLERANCE[torch.float32])


@pytest.mark.parametrize("normed", [False, True])
def test_an_fp8_cache_takes_keys_and_values_over_their_scales(normed):
    qkv, *inputs, metadata, norm, num_blocks = rope_case(torch.bfloat16, 64, normed)
    qkv[0] *= 1e4
    plain, cache = (empty_cache(num_blocks, 2, 16, 64, FP8) for _ in range(2))
    form = WriteForm(norm, k_scale=0.5, v_scale=0.01)
    got = run(rope_kv_write_gpu, qkv, *inputs, plain, metadata, form)
    wanted = rope_kv_write_fp8(qkv, *inputs, cache, metadata, form)
    torch.testing.assert_close(got, wanted, **TOLERANCE[torch.bfloat16])
    check_same_cache(plain, cache, FP8_TOLERANCE)
    assert plain[:, 1].float().nan_to_num().max() == 448


def test_rows_that_pad_a_batch_write_into_the_null_block_only():
    *inputs, metadata, norm, num_blocks = rope_case(torch.float32, 64, False)
    metadata.slot_mapping[-3:] = 0
    plain = empty_cache(num_blocks, 2, 16, 64, torch.float32)
    run(rope_kv_write_gpu, *inputs, plain, metadata, WriteForm(norm))
    assert plain[1:].isfinite().sum() == 2 * 7 * 2 * 64


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def rope_of_llama(kv_dtype=torch.bfloat16, head_dim=128):
    heads, ids = torch.empty(0), meta(64, dtype=torch.int64)
    metadata = AttentionMetadata(heads, heads, heads, ids, 1, 1)
    cache, table = meta(100, 2, 8, 16, head_dim, dtype=kv_dtype), meta(8192, 2, head_dim // 2, dtype=torch.float32)
    rope_kv_write_gpu(meta(64, 48 * head_dim), ids, table, cache, metadata, WriteForm())


SCALE = meta(1, dtype=torch.float32)
LAUNCHES = {
    "norm": lambda: rms_norm_gpu(meta(64, 4096), meta(64, 4096), meta(4096), 1e-5),
    "wide norm": lambda: rms_norm_gpu(meta(64, 16384), None, meta(16384), 1e-5),
    "fp8 norm": lambda: rms_norm_fp8_gpu(
        meta(64, 4096), meta(64, 4096), meta(4096), 1e-5, meta(1, dtype=torch.float32)
    ),
    "silu": lambda: silu_and_mul_gpu(meta(64, 28672)),
    "fp8 silu": lambda: silu_and_mul_fp8_gpu(meta(64, 28672)),
    "fp8 rows": lambda: quantise_rows_gpu(meta(64, 4096)),
    "wide fp8 rows": lambda: quantise_rows_gpu(meta(64, 14336)),
    "embedding": lambda: embedding_gpu(meta(1000, 4096), meta(64, dtype=torch.int64), meta(8, dtype=torch.int64)),
    "rope": rope_of_llama,
    "rope 80": lambda: rope_of_llama(head_dim=80),
    "rope fp8": lambda: rope_of_llama(FP8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHES)
def test_rows_are_moved_16_bytes_at_a_time_with_half_the_threads_of_a_multiprocessor_or_more(name):
    (kernel,) = compiled_kernels(90, LAUNCHES[name])
    assert kernel.spills == kernel.stack == 0
    assert kernel.programs_per_sm(90) * kernel.num_warps >= 32
    stores = set(re.findall(r"\bSTG\.E[.\w]*", kernel.sass))
    # 8 numbers of FP8 are 8 bytes; a row's scale is 4.
    narrower = {"rope fp8": {"STG.E.64"}, "fp8 silu": {"STG.E"}, "fp8 rows": {"STG.E"}, "wide fp8 rows": {"STG.E"}}
    assert stores == {"STG.E.128"} | narrower.get(name, set())
