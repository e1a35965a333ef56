"""Linear layers: hold packed weights. Several projections of the same input are fused into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.linear import linear, pack_weight


class Linear:
    """y = x W^T + b. Owns the packed weight; the tensors it was made from may be freed.

    weights: one [out_i, in] tensor a projection, stacked along the output; biases: one a weight, or none.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> None:
        self.packed = pack_weight(weights[0] if len(weights) == 1 else torch.cat(list(weights)))
        self.bias = torch.cat(list(biases)) if biases else None

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x: [T, in] -> [T, out] in x's dtype, or float32 where that is asked for."""
        return linear(x, self.packed, self.bias, dtype)
