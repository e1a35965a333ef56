"""The gated activation: silu(gate) * up from the fused gate-up projection. Every element is computed alone."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from octavo.kernels import native
from octavo.kernels.language import jit, tl

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
    if gate_up.is_cuda:
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


@jit
def _silu_and_mul_kernel(output: tl.tensor, gate_up: tl.tensor, WIDTH: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < WIDTH
    at = gate_up + row * (2 * WIDTH) + columns
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output + row * WIDTH + columns, gated.to(output.dtype.element_ty), mask=inside)
