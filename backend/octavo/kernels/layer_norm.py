"""LayerNorm, fused with the residual addition before it. Every row is computed alone."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels import native


class _Call(ctypes.Structure):
    """`struct layer_norm` of layer_norm.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "x", "residual", "weight", "bias")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "is_bf16", "num_threads")),
        ("eps", ctypes.c_double),
    )


def layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(s - mean(s)) / sqrt(var(s) + eps) * weight + bias over the last dimension of s = x + residual; fp32 inside.

    x, residual (None: nothing is added): [T, n], contiguous; weight, bias: [n], all of one dtype. Returns [T, n]. Ba,
    Kiros and Hinton 2016, arXiv 1607.06450. On a GPU it is PyTorch's own.
    """
    kernel = native.function("octavo_layer_norm", x)
    if kernel is None:
        return layer_norm_reference(x, residual, weight, bias, eps)
    assert x.is_contiguous() and x.dtype == weight.dtype == bias.dtype and weight.shape == bias.shape == x.shape[1:]
    assert residual is None or (residual.is_contiguous() and residual.shape == x.shape and residual.dtype == x.dtype)
    output = torch.empty_like(x)
    call = _Call(
        output.data_ptr(),
        x.data_ptr(),
        None if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        x.shape[0],
        x.shape[1],
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
        eps,
    )
    kernel(ctypes.byref(call))
    return output


def layer_norm_reference(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same in plain PyTorch."""
    added = x if residual is None else x + residual
    return functional.layer_norm(added, weight.shape, weight, bias, eps)
