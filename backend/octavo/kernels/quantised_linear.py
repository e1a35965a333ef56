"""y = x W^T + b with a weight of whole numbers of 8 or 4 bits, which is multiplied as it is: x keeps its precision.

A code times its scale (plus a minimum) is the number that it stands for. On CPU a row's result does not depend on the
other rows of x, bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels import native
from octavo.kernels.huge_pages import empty_in_huge_pages

GROUP = 32
"""Inputs that share a scale where there are groups."""
# Outputs side by side in a packed weight: PANEL of linear.h.
_PANEL = 32


class Kind(IntEnum):
    """`enum kind` of quantised_linear.c. 8 bits: -127 to 127; 4 bits: -8 to 7, with a minimum 0 to 15."""

    INT8_ROWS = 0
    INT8_GROUPS = 1
    INT4_GROUPS = 2
    INT4_MIN_GROUPS = 3

    @property
    def input_multiple(self) -> int:
        """What the number of inputs is a multiple of."""
        return 4 if self is Kind.INT8_ROWS else GROUP


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """A weight [out, in] as codes, int8 [out, in].

    scales: of INT8_ROWS fp32 [out, 1], else fp16 [out, in / GROUP]; minima: as scales, of INT4_MIN_GROUPS only.
    """

    kind: Kind
    codes: Tensor
    scales: Tensor
    minima: Tensor | None = None

    def dequantise(self) -> Tensor:
        """The numbers that the codes stand for, float32 [out, in]."""
        groups = self.codes.float().unflatten(1, (self.scales.shape[1], -1)) * self.scales.float().unsqueeze(2)
        return (groups if self.minima is None else groups + self.minima.float().unsqueeze(2)).flatten(1)


def stack_codes(parts: Sequence[WeightCodes]) -> WeightCodes:
    """Weights of one kind and with as many inputs, one on top of the other."""
    minima = [part.minima for part in parts if part.minima is not None]
    return WeightCodes(
        parts[0].kind,
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(minima) if minima else None,
    )


class _Call(ctypes.Structure):
    """`struct quantised_linear` of quantised_linear.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "bias")),
        *((name, ctypes.c_int64) for name in ("num_outputs", "is_bf16", "output_is_bf16")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "row_scales", "group_sums")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_inputs", "kind", "num_threads")),
    )


@dataclass(frozen=True, slots=True)
class PackedCodes:
    """WeightCodes rearranged for the C kernel, opaque: `data` is [panels, bytes]; row_scales: fp32 or None."""

    kind: Kind
    data: Tensor
    row_scales: Tensor | None
    num_outputs: int
    num_inputs: int


def pack_codes(weight: WeightCodes, dtype: torch.dtype) -> PackedCodes | WeightCodes:
    """Rearranges a weight for `quantised_linear` with x of `dtype`; where no C kernel takes that it stays as it is."""
    num_outputs, num_inputs = weight.codes.shape
    if num_inputs % weight.kind.input_multiple:
        raise AssertionError(f"{weight.kind.name} takes multiples of {weight.kind.input_multiple} inputs")
    if native.function("octavo_quantised_linear", torch.empty(0, dtype=dtype)) is None:
        return weight
    num_panels = -(-num_outputs // _PANEL)

    def padded(tensor: Tensor) -> Tensor:
        """As many outputs as the panels have: [num_panels, _PANEL, ...]."""
        missing = num_panels * _PANEL - num_outputs
        return functional.pad(tensor, (0, 0, 0, missing)).view(num_panels, _PANEL, -1)

    row_scales = padded(weight.scales).flatten().contiguous() if weight.kind is Kind.INT8_ROWS else None
    codes = padded(weight.codes)
    parts = [_pack_8_bits(codes) if weight.kind in (Kind.INT8_ROWS, Kind.INT8_GROUPS) else _pack_4_bits(codes, weight)]
    if weight.kind is not Kind.INT8_ROWS:
        headers = [tensor for tensor in (weight.scales, weight.minima) if tensor is not None]
        in_panels = [padded(tensor).transpose(1, 2).contiguous().view(torch.uint8) for tensor in headers]
        parts = [*in_panels, parts[0].view(num_panels, num_inputs // GROUP, -1)]
    data = empty_in_huge_pages((num_panels, sum(part[0].numel() for part in parts)), torch.uint8)
    torch.cat(parts, dim=-1, out=data.view(*parts[0].shape[:-1], -1))
    return PackedCodes(weight.kind, data, row_scales, num_outputs, num_inputs)
