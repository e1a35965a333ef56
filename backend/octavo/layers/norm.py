"""RMSNorm with its weight."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.quantise_rows import QuantisedRows
from octavo.kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_fp8


class RMSNorm:
    """x / rms(x) * weight, row by row."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] -> [T, hidden]."""
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual += x in place; returns the norm of the sum. Both [T, hidden]."""
        return add_rms_norm(x, residual, self.weight, self.eps)


class RMSNormFp8:
    """RMSNorm in front of a projection that takes FP8."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def add(self, x: Tensor, residual: Tensor) -> QuantisedRows:
        """residual += x in place; returns the norm of the sum, each row with a scale. Both [T, hidden]."""
        return QuantisedRows(*rms_norm_fp8(x, self.weight, self.eps, residual))
