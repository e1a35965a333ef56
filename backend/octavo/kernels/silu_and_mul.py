"""The gated activation: silu(gate) * up from the fused gate-up projection, alone or with its quantisation to FP8."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from octavo.kernels import language, native
from octavo.kernels.language import jit, next_power_of_2, tl
from octavo.kernels.quantise_rows import QuantisedRows, empty_rows, fp8_scale, quantise_rows_reference, to_fp8

# Columns a program: one 16-byte load of gate and one of up a thread.
_COLUMNS = 1024


class _Call(ctypes.Structure):
    """`struct silu_and_mul` of silu_and_mul.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "gate_up")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "is_bf16", "num_threads")),
    )


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate_up[:, :n]) * gate_up[:, n:]. gate_up: [T, 2 * n]; returns [T, n] of the same dtype; fp32 inside."""
    if language.on_gpu(gate_up):
        return silu_and_mul_gpu(gate_up)
    kernel = native.function("octavo_silu_and_mul", gate_up)
    if kernel is None:
        return silu_and_mul_reference(gate_up)
    assert gate_up.is_contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_rows, width)
    is_bf16 = gate_up.dtype == torch.bfloat16
    call = _Call(output.data_ptr(), gate_up.data_ptr(), num_rows, width, is_bf16, torch.get_num_threads())
    kernel(ctypes.byref(call))
    return output


def silu_and_mul_fp8(gate_up: Tensor) -> QuantisedRows:
    """`silu_and_mul` of gate_up [T, 2 * n], each row as FP8 e4m3 [T, n] and its scale."""
    if language.on_gpu(gate_up):
        return silu_and_mul_fp8_gpu(gate_up)
    return QuantisedRows(*quantise_rows_reference(silu_and_mul_reference(gate_up)))


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def silu_and_mul_gpu(gate_up: Tensor) -> Tensor:
    """`silu_and_mul` on a GPU."""
    assert gate_up.is_contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(num_rows, width)
    _silu_and_mul_kernel[(num_rows, -(-width // _COLUMNS))](output, gate_up, WIDTH=width, COLUMNS=_COLUMNS, num_warps=4)
    return output


def silu_and_mul_fp8_gpu(gate_up: Tensor) -> QuantisedRows:
    """`silu_and_mul_fp8` on a GPU: a program a row, whose scale needs all of it."""
    assert gate_up.is_contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    rows = empty_rows(gate_up, width)
    padded = next_power_of_2(width)
    # One 16-byte load of gate and one of up a thread, as long as there are threads.
    num_warps = max(1, min(32, padded // 256))
    _silu_and_mul_fp8_kernel[(num_rows,)](
        rows.data, rows.scale, gate_up, WIDTH=width, PADDED=padded, num_warps=num_warps
    )
    return rows


@jit
def _silu_and_mul_kernel(output: tl.tensor, gate_up: tl.tensor, WIDTH: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    gated = _gated(gate_up + row * (2 * WIDTH) + columns, inside, WIDTH)
    tl.store(output + row * WIDTH + columns, gated.to(output.dtype.element_ty), mask=inside)


@jit
def _silu_and_mul_fp8_kernel(
    output: tl.tensor, scales: tl.tensor, gate_up: tl.tensor, WIDTH: tl.constexpr, PADDED: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    gated = _gated(gate_up + row * (2 * WIDTH) + columns, inside, WIDTH)
    # Rounded first, as the product of unquantised weights would see it.
    gated = gated.to(gate_up.dtype.element_ty).to(tl.float32)
    scale = fp8_scale(gated)
    tl.store(scales + row, scale)
    tl.store(output + row * WIDTH + columns, to_fp8(gated, scale), mask=inside)


@jit
def _gated(at: tl.tensor, inside: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """fp32; zero outside."""
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    return gate / (1.0 + tl.exp(-gate)) * up
