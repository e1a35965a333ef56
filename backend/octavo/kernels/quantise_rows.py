"""Rows as FP8 e4m3 with a scale each: what the products of scaled_mm take, activations and weights alike.

Every row is computed alone: one program reads it once and keeps it in registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels import language
from octavo.kernels.language import jit, next_power_of_2, tl

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class QuantisedRows:
    """Stands for data * scale. data: FP8 e4m3 [T, n], contiguous; scale: fp32 [T, 1]."""

    data: Tensor
    scale: Tensor

    def dequantise(self) -> Tensor:
        """fp32 [T, n]."""
        return self.data.float() * self.scale


def quantise_rows(x: Tensor) -> QuantisedRows:
    """Each row of x [T, n] (bf16, fp16 or fp32) with the smallest scale that fits it; rows of zeros stay zeros.

    A row with a number that is not finite has no finite product.
    """
    if language.on_gpu(x):
        return quantise_rows_gpu(x)
    return QuantisedRows(*quantise_rows_reference(x))


def quantise_rows_reference(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, or with a scale fp32 [1] for all rows: what it does not reach becomes the largest."""
    wide = x.float()
    if scale is None:
        scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (wide / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def quantise_rows_gpu(x: Tensor) -> QuantisedRows:
    """`quantise_rows` on a GPU."""
    assert x.is_contiguous()
    num_rows, width = x.shape
    rows = empty_rows(x, width)
    padded = next_power_of_2(width)
    _quantise_rows_kernel[(num_rows,)](
        rows.data, rows.scale, x, WIDTH=width, PADDED=padded, num_warps=max(1, min(16, padded // 512))
    )
    return rows


def empty_rows(x: Tensor, width: int) -> QuantisedRows:
    """Room for as many rows as x has, on its device."""
    num_rows = x.shape[0]
    return QuantisedRows(x.new_empty(num_rows, width, dtype=FP8), x.new_empty(num_rows, 1, dtype=torch.float32))


@jit
def _quantise_rows_kernel(
    output: tl.tensor, scales: tl.tensor, x: tl.tensor, WIDTH: tl.constexpr, PADDED: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    wide = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    scale = fp8_scale(wide)
    tl.store(scales + row, scale)
    tl.store(output + row * WIDTH + columns, to_fp8(wide, scale), mask=inside)


@jit
def fp8_scale(wide: tl.tensor) -> tl.tensor:
    """The smallest scale with which all of `wide` (fp32 [n]) fits."""
    return tl.maximum(tl.max(tl.abs(wide)), 1e-12) / 448.0


@jit
def to_fp8(wide: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """wide / scale; beyond the largest number becomes that, and what is not a number stays so."""
    wide = tl.div_rn(wide, scale)
    return tl.where(wide > 448.0, 448.0, tl.where(wide < -448.0, -448.0, wide)).to(tl.float8e4nv)
