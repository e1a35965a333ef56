"""A weight that is kept as codes of 8 or 4 bits on CPU, however they came about; its inputs stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.kernels.quantise_rows import QuantisedRows
from octavo.kernels.quantised_linear import WeightCodes, pack_codes, quantised_linear, stack_codes

# Outputs that are quantised at once: what that needs in fp32 is small beside the weight, a vocabulary's too.
_SLICE = 4096


def quantise_stacked(weights: Sequence[Tensor], quantise: Callable[[Tensor], WeightCodes]) -> WeightCodes:
    """Weights [out_i, in], one on top of the other; `quantise` looks at each output alone."""
    return stack_codes([quantise(part) for weight in weights for part in torch.split(weight, _SLICE)])


class CodesWeight:
    """Owns a weight [out, in]; the codes that it was made from may be freed."""

    takes_fp8 = False

    def __init__(self, codes: WeightCodes) -> None:
        self.packed = pack_codes(codes)

    def multiply(self, x: Tensor | QuantisedRows, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
        """See QuantisedWeight."""
        assert isinstance(x, Tensor)
        return quantised_linear(x, self.packed, bias, dtype)
