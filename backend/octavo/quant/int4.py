"""Weights of 4 bits: whole numbers from 0 to 15, with one scale and one minimum a group of 32 inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.quantised_linear import GROUP, Kind, WeightCodes
from octavo.quant.codes import CodesWeight, quantise_stacked


class Int4Weight(CodesWeight):
    """A weight [out, in] in five bits a number, scales and minima counted."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(quantise_stacked(weights, quantise_int4))

    @staticmethod
    def fits(num_outputs: int, num_inputs: int) -> bool:
        """Whether a weight [num_outputs, num_inputs] can be held."""
        return num_inputs % GROUP == 0


def quantise_int4(weight: Tensor) -> WeightCodes:
    """Rounds a weight [out, in] to 16 steps from the smallest number of each group to the largest."""
    groups = weight.float().reshape(weight.shape[0], -1, GROUP)
    # Codes are chosen for scales and minima as they are kept, in fp16.
    minima = groups.amin(2).half()
    scales = ((groups.amax(2) - minima.float()) / 15).half()
    steps = scales.float().unsqueeze(2)
    codes = ((groups - minima.float().unsqueeze(2)) / steps.where(steps > 0, 1.0)).round().clamp(0, 15)
    return WeightCodes(Kind.INT4_MIN_GROUPS, codes.flatten(1).to(torch.int8), scales, minima)
