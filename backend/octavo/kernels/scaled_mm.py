"""Products of FP8 rows with an FP8 weight: the scales, one a row of each, are applied to the fp32 sums."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels import language
from octavo.kernels.quantise_rows import QuantisedRows

# What torch's FP8 product asks of the two sizes of a weight: rows of whole 16-byte units.
MULTIPLE = 16


def scaled_mm(x: QuantisedRows, weight: QuantisedRows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """y = x W^T + b. x: T rows of `in` numbers; weight: `out` rows of as many, one scale an output; bias: [out].

    Both sizes of the weight are multiples of 16. Returns [T, out] in `dtype`; on a GPU it has been rounded to bf16 on
    the way.
    """
    if language.on_gpu(x.data):
        return scaled_mm_gpu(x, weight, bias, dtype)
    return scaled_mm_reference(x, weight, bias, dtype)


def scaled_mm_reference(x: QuantisedRows, weight: QuantisedRows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch, for sizes of any kind."""
    product = x.dequantise() @ weight.dequantise().t()
    return (product if bias is None else product + bias.float()).to(dtype)


def scaled_mm_gpu(x: QuantisedRows, weight: QuantisedRows, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`scaled_mm` by cuBLAS or CUTLASS, whichever torch has for the GPU: from compute capability 8.9 on."""
    product = torch._scaled_mm(
        x.data,
        weight.data.t(),
        scale_a=x.scale,
        scale_b=weight.scale.t(),
        bias=None if bias is None else bias.to(torch.bfloat16),
        # The only type that every version computes with scales of rows.
        out_dtype=torch.bfloat16,
        # Else Hopper adds up in 14 bits: long sums of equal signs would stop growing.
        use_fast_accum=False,
    )
    return product.to(dtype)
