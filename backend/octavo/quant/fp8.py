"""FP8 weights and activations: e4m3 numbers with one scale an output of the weight, one scale a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.quantise_rows import QuantisedRows, quantise_rows
from octavo.kernels.scaled_mm import MULTIPLE, scaled_mm


class Fp8Weight:
    """Owns a weight [out, in] in half the bytes of bf16; the tensors that it was made from may be freed."""

    takes_fp8 = True

    def __init__(self, weights: Sequence[Tensor]) -> None:
        # One by one, so that no more than one is there as a copy; an output's scale knows no other output.
        parts = [quantise_rows(weight.contiguous()) for weight in weights]
        self.rows = QuantisedRows(torch.cat([part.data for part in parts]), torch.cat([part.scale for part in parts]))
        self.dtype = weights[0].dtype

    @staticmethod
    def fits(num_outputs: int, num_inputs: int) -> bool:
        """Whether a weight [num_outputs, num_inputs] can be multiplied with in FP8."""
        return num_outputs % MULTIPLE == 0 and num_inputs % MULTIPLE == 0

    def multiply(self, x: Tensor | QuantisedRows, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
        """See QuantisedWeight. x that is not FP8 yet becomes so, each row with a scale of its own."""
        rows = quantise_rows(x) if isinstance(x, Tensor) else x
        return scaled_mm(rows, self.rows, bias, dtype or self.dtype)
