"""y = x W^T + b with a weight that was rearranged once for the device.

On CPU a row's result does not depend on the other rows of x, bit for bit. Neither F.linear nor oneDNN's prepacked
product promises that: both pick the order of additions by the number of rows.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from octavo.kernels import native
from octavo.kernels.huge_pages import empty_in_huge_pages

# Outputs side by side in a packed weight: PANEL of linear.h.
_PANEL = 32


class _Call(ctypes.Structure):
    """`struct linear` of linear.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "bias")),
        *((name, ctypes.c_int64) for name in ("num_outputs", "is_bf16", "output_is_bf16")),
        *((name, ctypes.c_void_p) for name in ("x", "weight")),
        *((name, ctypes.c_int64) for name in ("num_rows", "words", "num_threads")),
    )


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [num_outputs, num_inputs], opaque: `data` is [panels, words, _PANEL, numbers a word], or plain."""

    data: Tensor
    num_outputs: int
    num_inputs: int

    @property
    def is_plain(self) -> bool:
        """Whether `data` is the weight as it was."""
        return self.data.dim() == 2


def pack_weight(weight: Tensor) -> PackedWeight:
    """Rearranges weight [out, in] for `linear`; on CPU the result is a copy."""
    num_outputs, num_inputs = weight.shape
    per_word = 2 if weight.dtype == torch.bfloat16 else 1
    if num_inputs % per_word or native.function("octavo_linear", weight) is None:
        return PackedWeight(weight.contiguous(), num_outputs, num_inputs)
    num_panels, words = -(-num_outputs // _PANEL), num_inputs // per_word
    data = empty_in_huge_pages((num_panels, words, _PANEL, per_word), weight.dtype)
    whole = num_outputs // _PANEL
    panels = weight[: whole * _PANEL].view(whole, _PANEL, words, per_word)
    data[:whole] = panels.transpose(1, 2)
    if whole < num_panels:
        # The columns beyond the last output are computed and never stored: they may hold anything.
        rest = weight[whole * _PANEL :].view(num_outputs - whole * _PANEL, words, per_word)
        data[whole, :, : rest.shape[0]] = rest.transpose(0, 1)
    return PackedWeight(data, num_outputs, num_inputs)


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """x: [T, in]; bias: [out] of the same type, or None. Returns [T, out] in `dtype`: x's, or float32."""
    dtype = dtype or x.dtype
    if weight.is_plain:
        if x.is_cuda and bias is None and dtype != x.dtype:
            return linear_wide(x, weight.data)
        return linear_reference(x, weight.data, bias).to(dtype)
    kernel = native.function("octavo_linear", x)
    assert kernel is not None and x.is_contiguous() and x.shape[1] == weight.num_inputs and x.dtype == weight.data.dtype
    output = torch.empty(x.shape[0], weight.num_outputs, dtype=dtype)
    call = _Call(
        output.data_ptr(),
        None if bias is None else bias.data_ptr(),
        weight.num_outputs,
        x.dtype == torch.bfloat16,
        dtype == torch.bfloat16,
        x.data_ptr(),
        weight.data.data_ptr(),
        x.shape[0],
        weight.data.shape[1],
        torch.get_num_threads(),
    )
    kernel(ctypes.byref(call))
    return output


def linear_wide(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T as the fp32 sums of bf16 or fp16 products, on CUDA only. x: [T, in]; weight: [out, in].

    Rounded in between, close logits would become equal, and the conversion would read and write all of them once more.
    """
    return torch.mm(x, weight.t(), out_dtype=torch.float32)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same in plain PyTorch, from the weight [out, in] as it was."""
    return functional.linear(x, weight, bias)
