"""RMSNorm and LayerNorm with their weights."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.layer_norm import layer_norm
from octavo.kernels.quantise_rows import QuantisedRows
from octavo.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_fp8


class RMSNorm:
    """x / rms(x) * weight, row by row."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def add(self, x: Tensor | None, residual: Tensor) -> Tensor:
        """residual += x in place, unless x is None; returns the norm of the sum. Both [T, hidden]."""
        if x is None:
            return rms_norm(residual, self.weight, self.eps)
        return add_rms_norm(x, residual, self.weight, self.eps)


class RMSNormFp8:
    """RMSNorm in front of a projection that takes FP8."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def add(self, x: Tensor | None, residual: Tensor) -> QuantisedRows:
        """residual += x in place, unless x is None; returns the norm of the sum, each row with a scale."""
        if x is None:
            return QuantisedRows(*rms_norm_fp8(residual, self.weight, self.eps))
        return QuantisedRows(*rms_norm_fp8(x, self.weight, self.eps, residual))


class LayerNorm:
    """(s - mean(s)) / deviation(s) * weight + bias of a sum s, row by row."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """The norm of x + residual, both [T, hidden]."""
        return layer_norm(x, residual, self.weight, self.bias, self.eps)
