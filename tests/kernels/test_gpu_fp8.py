import pytest
import torch

pytest.importorskip("triton")

from kernels.interpreted_rows import random, run

from octavo.kernels.quantise_rows import (
    FP8,
    FP8_MAX,
    QuantisedRows,
    quantise_rows,
    quantise_rows_gpu,
    quantise_rows_reference,
)
from octavo.kernels.scaled_mm import scaled_mm_gpu, scaled_mm_reference
from octavo.kernels.silu_and_mul import silu_and_mul_fp8, silu_and_mul_fp8_gpu, silu_and_mul_reference

pytestmark = pytest.mark.usefixtures("outputs_begin_as_nan")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [(1, 1), (1, 576), (3, 15), (5, 17), (17, 1000), (2, 4096)]
# One step of FP8 e4m3, relative, and the smallest number but zero.
FP8_TOLERANCE = {"rtol": 2**-3, "atol": 2**-9}
# FP8 rounds to the nearest of numbers that are at most 1/8 apart.
HALF_STEP = 2**-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_rows_become_the_fp8_numbers_and_scales_of_the_reference(dtype, size):
    x = random(*size, dtype=dtype)
    got, wanted = run(quantise_rows_gpu, x), QuantisedRows(*quantise_rows_reference(x))
    assert got.data.dtype == FP8
    assert torch.equal(got.scale, wanted.scale)
    assert torch.equal(got.data.float(), wanted.data.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantised_number_is_at_most_half_a_step_away(dtype):
    x = random(9, 333, dtype=dtype) * torch.logspace(-4, 4, 9)[:, None].to(dtype)
    rows = quantise_rows(x)
    # Below the smallest normal number, 2**-6, steps are no longer relative but 2**-9.
    bound = (x.float().abs() * HALF_STEP).maximum(rows.scale * 2**-10)
    assert ((rows.dequantise() - x.float()).abs() <= bound * 1.001).all()
    assert (rows.data.float().abs().amax(1) == FP8_MAX).all()


@pytest.mark.parametrize("operation", [quantise_rows_gpu, lambda x: QuantisedRows(*quantise_rows_reference(x))])
# The interpreter's maximum of a row of nothing else says so.
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_stays_in_its_row(operation):
    x = torch.ones(4, 20)
    x[0] = 0
    x[1, 3] = float("nan")
    x[2, 7] = float("inf")
    rows = run(operation, x)
    assert (rows.dequantise()[0] == 0).all()
    assert not rows.dequantise()[1].isfinite().all()
    assert not rows.dequantise()[2].isfinite().all()
    assert (rows.dequantise()[3] == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_gated_activation_in_fp8_is_that_of_the_reference(dtype, size):
    gate_up = random(size[0], 2 * size[1], dtype=dtype) * 4
    got, wanted = run(silu_and_mul_fp8_gpu, gate_up), silu_and_mul_fp8(gate_up)
    torch.testing.assert_close(got.scale, wanted.scale, rtol=1e-2, atol=0)
    torch.testing.assert_close(got.data.float(), wanted.data.float(), **FP8_TOLERANCE)
    plain = silu_and_mul_reference(gate_up).float()
    bound = (plain.abs() * HALF_STEP).maximum(wanted.scale * 2**-10)
    assert ((wanted.dequantise() - plain).abs() <= bound * 1.001).all()


@pytest.mark.slow
def test_every_row_is_quantised_alone():
    x = random(20, 576, dtype=torch.bfloat16)
    for operation in (quantise_rows_gpu, silu_and_mul_fp8_gpu):
        together = run(operation, x)
        for i in range(20):
            alone = run(operation, x[i : i + 1])
            assert torch.equal(alone.scale[0], together.scale[i])
            assert torch.equal(alone.data[0].view(torch.uint8), together.data[i].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("size", [(1, 16, 16), (5, 48, 32), (17, 576, 96), (3, 1600, 16)])
def test_the_product_of_rows_is_that_of_what_they_stand_for(dtype, size, with_bias):
    num_rows, num_inputs, num_outputs = size
    x = quantise_rows(random(num_rows, num_inputs, dtype=dtype))
    weight = quantise_rows(random(num_outputs, num_inputs, dtype=dtype, seed=1))
    bias = random(num_outputs, dtype=dtype, seed=2) if with_bias else None
    wanted = x.dequantise().double() @ weight.dequantise().double().t()
    wanted += 0 if bias is None else bias.double()
    got = scaled_mm_reference(x, weight, bias, dtype)
    assert got.dtype == dtype
    # Sums of fp32, then rounded to `dtype`; on a GPU to bf16 on the way, the bias too.
    bound = x.dequantise().abs() @ weight.dequantise().abs().t() * 2**-20 + wanted.abs() * torch.finfo(dtype).eps
    assert ((got.double() - wanted).abs() <= bound).all()
    rounded = wanted.abs() + (0 if bias is None else bias.double().abs())
    got = scaled_mm_gpu(x, weight, bias, dtype)
    assert got.dtype == dtype
    assert ((got.double() - wanted).abs() <= bound + rounded * 2**-8).all()


def test_torch_takes_the_operands_of_the_product_as_they_are():
    def rows(count):
        return QuantisedRows(*(torch.empty(count, n, dtype=t, device="meta") for n, t in ((64, FP8), (1, torch.float))))

    bias = torch.empty(48, dtype=torch.bfloat16, device="meta")
    for num_rows in (0, 1, 7, 300):
        product = scaled_mm_gpu(rows(num_rows), rows(48), bias, torch.bfloat16)
        assert product.shape == (num_rows, 48)
