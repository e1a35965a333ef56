"""RMSNorm, alone or fused with the residual addition before it and the quantisation to FP8 behind it.

Every row is computed alone. On a GPU one program does one row: it is read once and stays in registers.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from octavo.kernels import language, native
from octavo.kernels.language import jit, next_power_of_2, tl
from octavo.kernels.quantise_rows import FP8, fp8_scale, quantise_rows_reference, to_fp8


class _Call(ctypes.Structure):
    """`struct rms_norm` of rms_norm.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "residual", "x", "weight")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "is_bf16", "num_threads")),
        ("eps", ctypes.c_double),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; fp32 inside. x: [T, n], weight: [n], same dtype."""
    if language.on_gpu(x):
        return rms_norm_gpu(x, None, weight, eps)
    kernel = native.function("octavo_rms_norm", x)
    if kernel is None:
        return rms_norm_reference(x, weight, eps)
    return _run(kernel, x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x in place, then RMSNorm of the sum, which is returned. x, residual: [T, n]; weight: [n]."""
    if language.on_gpu(x):
        return rms_norm_gpu(x, residual, weight, eps)
    kernel = native.function("octavo_rms_norm", x)
    if kernel is None:
        residual += x
        return rms_norm_reference(residual, weight, eps)
    return _run(kernel, x, residual, weight, eps)


def rms_norm_fp8(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`rms_norm`, or with a residual `add_rms_norm`, as FP8 e4m3 and its scale: the product is the norm.

    scale: fp32 [1], or None: each row gets the smallest one that fits. Values beyond the scale's reach become the
    largest number. Returns ([T, n] FP8, fp32 [T, 1] or `scale`).
    """
    if language.on_gpu(x):
        return rms_norm_fp8_gpu(x, residual, weight, eps, scale)
    if residual is not None:
        residual += x
        x = residual
    return quantise_rows_reference(rms_norm_reference(x, weight, eps), scale)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in plain PyTorch: rounds to x's dtype before the multiplication, as the models were trained."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def _run(kernel: native.Function, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    assert x.is_contiguous() and x.dtype == weight.dtype and weight.shape == x.shape[1:]
    assert residual is None or (residual.is_contiguous() and residual.shape == x.shape and residual.dtype == x.dtype)
    output = torch.empty_like(x)
    call = _Call(
        output.data_ptr(),
        None if residual is None else residual.data_ptr(),
        x.data_ptr(),
        weight.data_ptr(),
        x.shape[0],
        x.shape[1],
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
        eps,
    )
    kernel(ctypes.byref(call))
    return output


def rms_norm_gpu(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` or `add_rms_norm` on a GPU."""
    output = torch.empty_like(x)
    _launch(output, None, x, residual, (weight, eps))
    return output


def rms_norm_fp8_gpu(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`rms_norm_fp8` on a GPU."""
    output = torch.empty_like(x, dtype=FP8)
    scales = x.new_empty(x.shape[0], 1, dtype=torch.float32) if scale is None else scale
    _launch(output, scales, x, residual, (weight, eps), scale is None)
    return output, scales


def _launch(
    output: Tensor,
    scales: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    norm: tuple[Tensor, float],
    is_dynamic: bool = False,
) -> None:
    weight, eps = norm
    num_rows, width = x.shape
    assert x.is_contiguous() and x.dtype == weight.dtype and weight.shape == (width,) and weight.is_contiguous()
    assert residual is None or (residual.is_contiguous() and residual.shape == x.shape and residual.dtype == x.dtype)
    padded = next_power_of_2(width)
    _rms_norm_kernel[(num_rows,)](
        output,
        scales,
        x,
        residual,
        weight,
        eps,
        WIDTH=width,
        PADDED=padded,
        HAS_RESIDUAL=residual is not None,
        IS_QUANTISED=scales is not None,
        IS_DYNAMIC=is_dynamic,
        # Two 16-byte loads a thread: what a row of a small batch takes is waiting for them.
        num_warps=max(1, min(16, padded // 512)),
    )


@jit
def _rms_norm_kernel(
    output: tl.tensor,
    scales: tl.tensor,
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_QUANTISED: tl.constexpr,
    IS_DYNAMIC: tl.constexpr,
) -> None:
    dtype = x.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    at = row * WIDTH + columns
    # Asked for first: the weight does not wait for the row.
    gain = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total = (tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) + wide).to(dtype)
        tl.store(residual + at, total, mask=inside)
        wide = total.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide) / WIDTH + eps)
    normed = (normed.to(dtype).to(tl.float32) * gain).to(dtype)
    if IS_QUANTISED:
        wide = normed.to(tl.float32)
        if IS_DYNAMIC:
            scale = fp8_scale(wide)
            tl.store(scales + row, scale)
        else:
            scale = tl.load(scales)
        tl.store(output + at, to_fp8(wide, scale), mask=inside)
    else:
        tl.store(output + at, normed, mask=inside)
