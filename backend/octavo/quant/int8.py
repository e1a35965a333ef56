"""Weights of 8 bits: whole numbers from -127 to 127, with one scale an output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.quantised_linear import Kind, WeightCodes
from octavo.quant.codes import CodesWeight, quantise_stacked


class Int8Weight(CodesWeight):
    """A weight [out, in] in half the bytes of bf16."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(quantise_stacked(weights, quantise_int8))

    @staticmethod
    def fits(num_outputs: int, num_inputs: int) -> bool:
        """Whether a weight [num_outputs, num_inputs] can be held."""
        return num_inputs % Kind.INT8_ROWS.input_multiple == 0


def quantise_int8(weight: Tensor) -> WeightCodes:
    """Rounds a weight [out, in] to the nearest multiples of its outputs' scales: the largest number becomes 127."""
    weight = weight.float()
    scales = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scales.where(scales > 0, 1.0)).round()
    return WeightCodes(Kind.INT8_ROWS, codes.to(torch.int8), scales)
