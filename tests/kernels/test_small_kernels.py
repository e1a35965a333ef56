from unittest.mock import patch

import pytest
import torch
from kernels.paged import metadata_of, random_sequence

from octavo.kernels.kv_layout import key_slots, read_blocks, write_slots
from octavo.kernels.linear import linear, linear_wide, pack_weight
from octavo.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_reference
from octavo.kernels.rope_kv_write import HeadNorm, rope_kv_write, rope_kv_write_reference
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

DTYPES = [torch.bfloat16, torch.float32]
SIZES = [(1, 1), (1, 576), (3, 15), (5, 17), (63, 16), (64, 1000)]
TOLERANCE = {torch.bfloat16: {"rtol": 1e-2, "atol": 1e-2}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}


def random(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rms_norm_equals_reference(dtype, size):
    x, weight = random(*size, dtype=dtype), random(size[1], dtype=dtype, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_add_rms_norm_adds_in_place_and_norms_the_sum(dtype, size):
    x, residual, weight = (random(*shape, dtype=dtype, seed=i) for i, shape in enumerate((size, size, size[1:])))
    total = residual + x
    got = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(residual, total)
    torch.testing.assert_close(got, rms_norm_reference(total, weight, 1e-5), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_silu_and_mul_equals_reference(dtype, size):
    gate_up = random(size[0], 2 * size[1], dtype=dtype) * 4
    torch.testing.assert_close(silu_and_mul(gate_up), silu_and_mul_reference(gate_up), **TOLERANCE[dtype])


def test_silu_and_mul_of_extreme_gates():
    gate_up = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 1e30, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    got = silu_and_mul(gate_up)
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0, 0.0, 0.0, 180.0, 2e30]]), atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("operation", [rms_norm, add_rms_norm])
def test_a_norm_keeps_what_is_not_finite(operation):
    x, weight = torch.ones(2, 20), torch.ones(20)
    x[0, 3] = float("nan")
    got = operation(x, weight, 1e-5) if operation is rms_norm else operation(x, torch.zeros(2, 20), weight, 1e-5)
    assert got[0].isnan().all()
    assert got[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_small_operators_treat_every_row_alone(dtype, num_threads):
    torch.set_num_threads(num_threads)
    x, weight = random(100, 576, dtype=dtype), random(576, dtype=dtype, seed=1)
    for operation in (silu_and_mul, lambda rows: rms_norm(rows, weight, 1e-5)):
        together = operation(x)
        assert torch.equal(torch.cat([operation(x[i : i + 1]) for i in range(100)]), together)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 3, 4, 16, 64])
@pytest.mark.parametrize("head_dim", [8, 24, 64, 256])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_kv_write_equals_reference(dtype, block_size, head_dim, normed):
    query_lens, seq_lens, num_blocks = [1, 17, 2], [5, 17, 40], 80
    table = (torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(0)) + 1).int()[:78].view(3, 26)
    seq_lens = [min(length, 26 * block_size) for length in seq_lens]
    query_lens = [min(pair) for pair in zip(query_lens, seq_lens, strict=True)]
    metadata = metadata_of(query_lens, seq_lens, table, block_size)
    num_tokens = sum(query_lens)
    qkv = random(num_tokens, (6 + 2 * 2) * head_dim, dtype=dtype)
    positions = torch.arange(num_tokens) * 7
    angles = random(num_tokens * 7, 2, head_dim // 2, dtype=torch.float32, seed=1)
    norm = HeadNorm(*(random(head_dim, dtype=dtype, seed=i) for i in (2, 3)), 1e-6) if normed else None
    caches = [torch.full((num_blocks, 2, 2, block_size, head_dim), float("nan"), dtype=dtype) for _ in range(2)]
    got = rope_kv_write(qkv.clone(), positions, angles, caches[0], metadata, norm)
    wanted = rope_kv_write_reference(qkv, positions, angles, caches[1], metadata, norm)
    torch.testing.assert_close(got, wanted, **TOLERANCE[dtype])
    torch.testing.assert_close(caches[0], caches[1], **TOLERANCE[dtype], equal_nan=True)
    assert caches[0].isfinite().sum() == 2 * num_tokens * 2 * head_dim


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
def test_what_was_written_is_read_back(dtype, block_size):
    _, keys, values = random_sequence(4 * block_size, (2, 2), 24, dtype, seed=0)
    cache = torch.full((9, 2, 2, block_size, 24), float("nan"), dtype=dtype)
    blocks = torch.tensor([7, 2, 5, 3])
    write_slots(cache, (blocks[:, None] * block_size + torch.arange(block_size)).flatten(), keys, values)
    for got, wanted in zip(read_blocks(cache, blocks), (keys, values), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (17, 33, 100), (64, 960, 576), (5, 576, 1536)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_equals_reference(dtype, shape, has_bias):
    num_rows, num_outputs, num_inputs = shape
    x, weight = random(num_rows, num_inputs, dtype=dtype), random(num_outputs, num_inputs, dtype=dtype, seed=1)
    bias = random(num_outputs, dtype=dtype, seed=2) if has_bias else None
    wanted = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(dtype)
    got = linear(x, pack_weight(weight), bias)
    tolerance = {torch.bfloat16: {"rtol": 2e-2, "atol": 0.3}, torch.float32: {"rtol": 1e-4, "atol": 1e-3}}[dtype]
    torch.testing.assert_close(got, wanted, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(960, 576), (576, 1536), (50, 4096), (33, 72)])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_linear_treats_every_row_alone(dtype, sizes, num_threads):
    torch.set_num_threads(num_threads)
    packed = pack_weight(random(*sizes, dtype=dtype))
    bias = random(sizes[0], dtype=dtype, seed=1)
    x = random(130, sizes[1], dtype=dtype, seed=2)
    alone = torch.cat([linear(x[i : i + 1], packed, bias) for i in range(130)])
    for count in (2, 3, 7, 8, 9, 16, 31, 64, 130):
        assert torch.equal(linear(x[130 - count :].contiguous(), packed, bias), alone[130 - count :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torch_has_a_product_with_fp32_sums_for_a_gpus_logits(dtype):
    x, weight = (torch.empty(shape, dtype=dtype, device="meta") for shape in ((3, 16), (50, 16)))
    product = linear_wide(x, weight)
    assert (product.shape, product.dtype) == ((3, 50), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_weights_and_caches_stay_in_plain_order(dtype):
    weight, cache = random(64, 32, dtype=dtype), random(3, 2, 2, 16, 8, dtype=dtype)
    x, bias = random(5, 32, dtype=dtype, seed=1), random(64, dtype=dtype, seed=2)
    with patch("octavo.kernels.language.on_gpu", lambda tensor: True):
        packed = pack_weight(weight)
        assert torch.equal(packed.data, weight)
        for has_bias in (None, bias):
            wanted = torch.nn.functional.linear(x, weight, has_bias)
            assert torch.equal(linear(x, packed, has_bias), wanted)
            assert torch.equal(linear(x, packed, has_bias, torch.float32), wanted.float())
        assert torch.equal(key_slots(cache).flatten(3), cache[:, 0])
    assert not torch.equal(key_slots(cache).flatten(3), cache[:, 0])
