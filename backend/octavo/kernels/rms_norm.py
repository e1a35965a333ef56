"""RMSNorm, alone or fused with the residual addition before it. Every row is computed alone."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from octavo.kernels import native


class _Call(ctypes.Structure):
    """`struct rms_norm` of rms_norm.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "residual", "x", "weight")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "is_bf16", "num_threads")),
        ("eps", ctypes.c_double),
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; fp32 inside. x: [T, n], weight: [n], same dtype."""
    kernel = native.function("octavo_rms_norm", x)
    if kernel is None:
        return rms_norm_reference(x, weight, eps)
    return _run(kernel, x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """residual += x in place, then RMSNorm of the sum, which is returned. x, residual: [T, n]; weight: [n]."""
    kernel = native.function("octavo_rms_norm", x)
    if kernel is None:
        residual += x
        return rms_norm_reference(residual, weight, eps)
    return _run(kernel, x, residual, weight, eps)


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
