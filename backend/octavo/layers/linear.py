"""Linear layers: hold packed or quantised weights. Several projections of the same input are fused into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.linear import linear, pack_weight
from octavo.kernels.quantise_rows import QuantisedRows
from octavo.kernels.quantised_linear import GROUP, Kind, WeightCodes, stack_codes
from octavo.quant import QuantisedWeight, quantise
from octavo.quant.codes import CodesWeight

__all__ = ["GROUP", "Kind", "Linear", "WeightCodes", "stack_codes"]


class Linear:
    """y = x W^T + b. Owns the weight; the tensors it was made from may be freed.

    weights: one [out_i, in] tensor a projection, stacked along the output, or the codes of all; biases: one a weight,
    or none. quantization: a key of SCHEMES, or None. A weight whose shape the scheme cannot hold stays as it is.
    """

    def __init__(
        self,
        weights: Sequence[Tensor] | WeightCodes,
        biases: Sequence[Tensor] = (),
        quantization: str | None = None,
    ) -> None:
        self.bias = torch.cat(list(biases)) if biases else None
        self.quantised: QuantisedWeight | None = None
        if isinstance(weights, WeightCodes):
            self.quantised = CodesWeight(weights)
            return
        if quantization is not None:
            self.quantised = quantise(quantization, weights)
        if self.quantised is None:
            self.packed = pack_weight(weights[0] if len(weights) == 1 else torch.cat(list(weights)))

    @property
    def takes_fp8(self) -> bool:
        """Whether the input becomes FP8 anyway, so that whoever computes it may hand it over as such."""
        return self.quantised is not None and self.quantised.takes_fp8

    def __call__(self, x: Tensor | QuantisedRows, dtype: torch.dtype | None = None) -> Tensor:
        """x: [T, in] -> [T, out] in the weight's dtype, or float32 where that is asked for."""
        if self.quantised is not None:
            return self.quantised.multiply(x, self.bias, dtype)
        assert isinstance(x, Tensor)
        return linear(x, self.packed, self.bias, dtype)
