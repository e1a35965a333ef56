"""The gated MLP of the Llama family."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.silu_and_mul import silu_and_mul
from octavo.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(silu(gate(x)) * up(x)); gate and up are one projection."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden] -> [T, hidden]."""
        return self.down(silu_and_mul(self.gate_up(x)))
