"""The MLPs between two norms: gated, as in the Llama family, and plain, as in BERT."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.gelu import gelu
from octavo.kernels.quantise_rows import QuantisedRows
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_fp8
from octavo.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(silu(gate(x)) * up(x)); gate and up are one projection."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor | QuantisedRows) -> Tensor:
        """x: [T, hidden] -> [T, hidden]."""
        activate = silu_and_mul_fp8 if self.down.takes_fp8 else silu_and_mul
        return self.down(activate(self.gate_up(x)))


@dataclass(frozen=True, slots=True)
class MLP:
    """down(gelu(up(x)))."""

    up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] -> [T, hidden]."""
        return self.down(gelu(self.up(x)))
