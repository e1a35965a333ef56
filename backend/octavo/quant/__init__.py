"""Quantised weights: SCHEMES, one file a scheme. Knows tensors; neither checkpoints nor what a weight belongs to.

A scheme is a class that is made from weights [out_i, in], stacked along the output, and is a QuantisedWeight.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.quantise_rows import QuantisedRows

# The name in the setting `quantization` -> "module:Class".
SCHEMES = {
    "fp8": "octavo.quant.fp8:Fp8Weight",
    "int8": "octavo.quant.int8:Int8Weight",
    "int4": "octavo.quant.int4:Int4Weight",
}


class QuantisedWeight(Protocol):
    """One weight [out, in]. takes_fp8: its products begin with FP8 rows, which the operation before may make itself."""

    takes_fp8: bool

    def multiply(self, x: Tensor | QuantisedRows, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
        """x W^T + b. x: [T, in]; bias: [out] or None. Returns [T, out] in `dtype`, or in the weight's own."""
        ...


def quantise(scheme: str, weights: Sequence[Tensor]) -> QuantisedWeight | None:
    """The weights, one on top of the other, in `scheme`, a key of SCHEMES; None if it cannot hold their shape."""
    module, _, class_name = SCHEMES[scheme].partition(":")
    found = getattr(importlib.import_module(module), class_name)
    num_outputs, num_inputs = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    weight: QuantisedWeight | None = found(weights) if found.fits(num_outputs, num_inputs) else None
    return weight
