"""Products with weights of 8 and 4 bits: against plain PyTorch, by row, and by the C code that any CPU runs."""

import ctypes
import shutil
import subprocess

import pytest
import torch

from octavo.kernels import native, quantised_linear
from octavo.kernels.quantised_linear import (
    GROUP,
    Kind,
    PackedCodes,
    WeightCodes,
    pack_codes,
    quantised_linear_reference,
    stack_codes,
)

multiply = quantised_linear.quantised_linear
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
# Rows, outputs, inputs: around tiles of 8 rows, panels of 32 outputs, groups of 32 inputs.
SHAPES = [(1, 8, 32), (7, 33, 64), (8, 100, 96), (9, 31, 320), (63, 64, 576), (2, 576, 1536), (5, 1, 4096)]
CODES = {
    Kind.INT8_ROWS: (-127, 128),
    Kind.INT8_GROUPS: (-127, 128),
    Kind.INT4_GROUPS: (-8, 8),
    Kind.INT4_MIN_GROUPS: (0, 16),
}


def random_codes(kind, num_outputs, num_inputs, seed=0):
    """Every code is there; scales of any size, the smallest that fp16 has too."""
    generator = torch.Generator().manual_seed(seed)
    low, high = CODES[kind]
    codes = torch.randint(low, high, (num_outputs, num_inputs), generator=generator).to(torch.int8)
    codes.view(-1)[: min(high - low, codes.numel())] = torch.arange(low, high)[: codes.numel()].to(torch.int8)
    if kind is Kind.INT8_ROWS:
        return WeightCodes(kind, codes, torch.rand(num_outputs, 1, generator=generator) / 100)
    shape = (num_outputs, num_inputs // GROUP)
    scales = (torch.rand(shape, generator=generator) / 100 - 0.002).half()
    scales[0, 0] = 2**-24
    minima = torch.randn(shape, generator=generator).half() / 20
    return WeightCodes(kind, codes, scales, minima if kind is Kind.INT4_MIN_GROUPS else None)


def random_rows(num_rows, num_inputs, dtype, seed=1):
    return torch.randn(num_rows, num_inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near_the_reference(x, weight, packed, bias):
    """The order of fp32 additions is all that may differ: each adds up to 2**-24 of what the sum has grown to."""
    wanted = quantised_linear_reference(x, weight, bias, torch.float32)
    size = x.float().abs() @ weight.dequantise().abs().t()
    if weight.minima is not None:
        # A group's codes and its minimum are added up apart.
        size += 2 * x.float().abs() @ weight.minima.float().abs().repeat_interleave(GROUP, 1).t()
    got = multiply(x, packed, bias, torch.float32)
    assert ((got - wanted).abs() <= x.shape[1] * 2**-24 * size + 2**-22 * wanted.abs() + 1e-7).all()
    torch.testing.assert_close(multiply(x, packed, bias), got.to(x.dtype), rtol=2**-10, atol=0)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_equals_the_reference(kind, dtype, has_bias):
    for num_rows, num_outputs, num_inputs in SHAPES:
        weight = random_codes(kind, num_outputs, num_inputs)
        bias = random_rows(1, num_outputs, dtype, seed=2)[0] if has_bias else None
        assert_near_the_reference(random_rows(num_rows, num_inputs, dtype), weight, pack_codes(weight), bias)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_row_is_treated_alone(kind, dtype, num_threads):
    torch.set_num_threads(num_threads)
    packed = pack_codes(random_codes(kind, 100, 608))
    x, bias = random_rows(600, 608, dtype), random_rows(1, 100, dtype, seed=2)[0]
    alone = torch.cat([multiply(x[i : i + 1], packed, bias) for i in range(600)])
    for count in (2, 3, 4, 5, 7, 8, 9, 15, 31, 64, 130, 600):
        assert torch.equal(multiply(x[600 - count :].contiguous(), packed, bias), alone[600 - count :])


@pytest.mark.parametrize("kind", Kind)
def test_codes_are_the_numbers_that_they_stand_for(kind):
    """A unit vector in, a column of the weight out: exactly, but where a scale times a code is no bf16 number."""
    weight = random_codes(kind, 40, 64)
    got = multiply(torch.eye(64), pack_codes(weight), None).t()
    torch.testing.assert_close(got, weight.dequantise(), rtol=2**-23, atol=0)


def test_a_group_of_zeros_and_an_infinite_input():
    weight = random_codes(Kind.INT4_GROUPS, 5, 64)
    weight.codes[:, :32] = 0
    x = torch.ones(2, 64)
    x[0, 40] = float("inf")
    got = multiply(x, pack_codes(weight))
    assert not got[0].isfinite().any() and got[1].isfinite().all()


@pytest.mark.parametrize("kind", Kind)
def test_stacked_weights_give_what_each_gives(kind):
    parts = [random_codes(kind, num_outputs, 64, seed=num_outputs) for num_outputs in (24, 33)]
    x = random_rows(3, 64, torch.bfloat16)
    wanted = torch.cat([multiply(x, pack_codes(part)) for part in parts], dim=1)
    assert torch.equal(multiply(x, pack_codes(stack_codes(parts))), wanted)


@pytest.mark.parametrize("kind", Kind)
def test_a_packed_weight_is_as_small_as_its_codes(kind):
    weight = random_codes(kind, 64, 128)
    packed = pack_codes(weight)
    numbers = [tensor for tensor in (weight.scales, weight.minima) if tensor is not None]
    size = 64 * 128 * (4 if kind.has_4_bits else 8) // 8 + sum(tensor.nbytes for tensor in numbers)
    assert packed.data.nbytes + (0 if packed.row_scales is None else packed.row_scales.nbytes) == size


@pytest.mark.parametrize("kind", Kind)
def test_without_a_compiler_the_reference_runs_and_is_counted(kind, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    before = native.num_fallbacks
    weight, x = random_codes(kind, 10, 64), random_rows(3, 64, torch.bfloat16)
    packed = pack_codes(weight)
    assert packed is weight
    assert torch.equal(multiply(x, packed), quantised_linear_reference(x, weight))
    assert native.num_fallbacks > before


@pytest.fixture(scope="module")
def plain_c(tmp_path_factory):
    """The C function compiled for the oldest CPU of this kind: no vectors of AVX, no instructions for bf16."""
    folder = native.__file__.rpartition("/")[0]
    target = tmp_path_factory.mktemp("plain") / "plain.so"
    sources = [f"{folder}/{name}.c" for name in ("quantised_linear", "threads")]
    flags = ("-O1", "-std=gnu11", "-fPIC", "-pthread", "-shared", "-w")
    subprocess.run(["cc", *flags, *sources, "-o", str(target)], check=True)
    found = ctypes.CDLL(str(target)).octavo_quantised_linear
    found.argtypes = (ctypes.c_void_p,)
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_the_code_for_any_cpu_computes_the_same(kind, dtype, plain_c, monkeypatch):
    weight = random_codes(kind, 100, 96)
    packed = pack_codes(weight)
    assert isinstance(packed, PackedCodes)
    monkeypatch.setattr(native, "function", lambda name, tensor: plain_c)
    x, bias = random_rows(9, 96, dtype), random_rows(1, 100, dtype, seed=2)[0]
    assert_near_the_reference(x, weight, packed, bias)
    alone = torch.cat([multiply(x[i : i + 1], packed, bias) for i in range(9)])
    assert torch.equal(multiply(x, packed, bias), alone)
