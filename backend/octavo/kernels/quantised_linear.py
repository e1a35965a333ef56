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

    @property
    def has_4_bits(self) -> bool:
        """Whether two codes share a byte."""
        return self in (Kind.INT4_GROUPS, Kind.INT4_MIN_GROUPS)


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
        groups = self.codes.float().view(*self.scales.shape, -1) * self.scales.float().unsqueeze(2)
        if self.minima is not None:
            groups += self.minima.float().unsqueeze(2)
        return groups.flatten(1)


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


def pack_codes(weight: WeightCodes) -> PackedCodes | WeightCodes:
    """Rearranges a weight for `quantised_linear`; where the C kernel is missing it stays as it is."""
    num_outputs, num_inputs = weight.codes.shape
    assert num_inputs % weight.kind.input_multiple == 0
    if native.function("octavo_quantised_linear", torch.empty(0)) is None:
        return weight
    codes = _in_panels(weight.codes)
    parts = [_pack_4_bits(codes, weight.minima is None) if weight.kind.has_4_bits else _pack_8_bits(codes)]
    row_scales = None
    if weight.kind is Kind.INT8_ROWS:
        row_scales = _in_panels(weight.scales)
    else:
        headers = [_in_panels(tensor) for tensor in (weight.scales, weight.minima) if tensor is not None]
        as_bytes = [tensor.transpose(1, 2).contiguous().view(torch.uint8) for tensor in headers]
        parts = [*as_bytes, parts[0].view(len(codes), num_inputs // GROUP, -1)]
    shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    data = torch.cat(parts, dim=-1, out=empty_in_huge_pages(shape, torch.uint8))
    return PackedCodes(weight.kind, data, row_scales, num_outputs, num_inputs)


def _in_panels(tensor: Tensor) -> Tensor:
    """[out, n] -> [panels, _PANEL, n], with zeros for outputs that there are not."""
    missing = -len(tensor) % _PANEL
    return functional.pad(tensor, (0, 0, 0, missing)).view(-1, _PANEL, tensor.shape[1])


def _pack_8_bits(codes: Tensor) -> Tensor:
    """int8 [panels, _PANEL, in] -> uint8 [panels, bytes] in the order of unpack_8_bits."""
    signed = codes.abs().view(torch.uint8) | (codes.view(torch.uint8) & 128)
    # The half, the quarter of its vector, the output in there; a vector of four inputs, the pair of them, the input.
    parts = signed.view(len(codes), 2, 4, 4, -1, 2, 2)
    return parts.permute(0, 4, 1, 2, 5, 3, 6).flatten(1)


def _pack_4_bits(codes: Tensor, has_signs: bool) -> Tensor:
    """int8 [panels, _PANEL, in] -> uint8 [panels, bytes] in the order of unpack_4_bits."""
    numbers = (codes + 8 if has_signs else codes).view(torch.uint8)
    # The half, the output in there; a vector of eight inputs, two pairs of pairs, the input in its pair.
    parts = numbers.view(len(codes), 2, 16, -1, 2, 2, 2)
    both = parts[..., 0, :] | parts[..., 1, :] << 4
    return both.permute(0, 3, 1, 2, 5, 4).flatten(1)


def quantised_linear(
    x: Tensor, weight: PackedCodes | WeightCodes, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """x: [T, in], bf16, fp16 or fp32; bias: [out] of the same, or None. -> [T, out] in `dtype`: x's, or float32."""
    dtype = dtype or x.dtype
    if isinstance(weight, WeightCodes):
        return quantised_linear_reference(x, weight, bias, dtype)
    if x.dtype == torch.float16:
        return quantised_linear(x.float(), weight, None if bias is None else bias.float()).to(dtype)
    kernel = native.function("octavo_quantised_linear", x)
    assert kernel is not None and x.is_contiguous() and x.shape[1] == weight.num_inputs
    num_rows = x.shape[0]
    output = torch.empty(num_rows, weight.num_outputs, dtype=dtype)
    has_minima = weight.kind is Kind.INT4_MIN_GROUPS
    group_sums = torch.empty(num_rows, weight.num_inputs // GROUP) if has_minima else None
    call = _Call(
        output.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.num_outputs,
        x.dtype == torch.bfloat16,
        dtype == torch.bfloat16,
        x.data_ptr(),
        weight.data.data_ptr(),
        None if weight.row_scales is None else weight.row_scales.data_ptr(),
        None if group_sums is None else group_sums.data_ptr(),
        num_rows,
        weight.num_inputs,
        weight.kind,
        torch.get_num_threads(),
    )
    kernel(ctypes.byref(call))
    return output


def quantised_linear_reference(
    x: Tensor, weight: WeightCodes, bias: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The same in plain PyTorch: the weight's numbers are made anew each time, in fp32."""
    product = functional.linear(x.float(), weight.dequantise(), None if bias is None else bias.float())
    return product.to(dtype or x.dtype)
