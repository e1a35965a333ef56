"""GELU, x * Phi(x), without the approximation by tanh. Every row is computed alone."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels import native


class _Call(ctypes.Structure):
    """`struct gelu` of gelu.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "x")),
        *((name, ctypes.c_int64) for name in ("num_rows", "width", "is_bf16", "num_threads")),
    )


def gelu(x: Tensor) -> Tensor:
    """x: [T, n], contiguous; returns [T, n] of the same dtype; fp32 inside.

    Hendrycks and Gimpel 2016, arXiv 1606.08415. On a GPU it is PyTorch's own.
    """
    kernel = native.function("octavo_gelu", x)
    if kernel is None:
        return gelu_reference(x)
    assert x.is_contiguous()
    output = torch.empty_like(x)
    is_bf16 = x.dtype == torch.bfloat16
    call = _Call(output.data_ptr(), x.data_ptr(), x.shape[0], x.shape[1], is_bf16, torch.get_num_threads())
    kernel(ctypes.byref(call))
    return output


def gelu_reference(x: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    return functional.gelu(x)
