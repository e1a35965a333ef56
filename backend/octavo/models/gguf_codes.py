"""The tensors of a GGUF file that can stay as they lie there: its 8 and 4 bit types with one fp16 scale for 32 numbers.

Facts: the blocks Q8_0, Q4_0 and Q4_1 of the GGUF specification.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.layers.linear import GROUP, Kind, WeightCodes

# By the format's names of its types.
_KINDS = {"Q8_0": Kind.INT8_GROUPS, "Q4_0": Kind.INT4_GROUPS, "Q4_1": Kind.INT4_MIN_GROUPS}
_SCALE_BYTES = 2


def codes_of(tensor: Any) -> WeightCodes | None:
    """The tensor [out, in] of a gguf.GGUFReader as codes; None where it is of another type, or holds what they cannot.

    That is a code of -128, or a scale that is no finite number: other programs' files may have either.
    """
    kind = _KINDS.get(tensor.tensor_type.name)
    if kind is None:
        return None
    # A copy, because the file is mapped for reading only: out outputs of blocks of bytes.
    blocks = torch.from_numpy(tensor.data.copy()).view(torch.uint8).flatten(1)
    num_groups = int(tensor.shape[0]) // GROUP
    blocks = blocks.view(len(blocks), num_groups, -1)
    minima = _halves(blocks, 1) if kind is Kind.INT4_MIN_GROUPS else None
    packed = blocks[..., _SCALE_BYTES if minima is None else 2 * _SCALE_BYTES :]
    if kind.has_4_bits:
        # The first half of a group lies in the lower bits.
        numbers = torch.cat([packed & 15, packed >> 4], dim=-1).view(torch.int8)
        codes = numbers - 8 if minima is None else numbers
    else:
        codes = packed.contiguous().view(torch.int8)
    scales = _halves(blocks, 0)
    finite = scales.isfinite().all() and (minima is None or minima.isfinite().all())
    if not finite or (codes == -128).any():
        return None
    return WeightCodes(kind, codes.flatten(1), scales, minima)


def _halves(blocks: Tensor, index: int) -> Tensor:
    """fp16 number `index` of each block, uint8 [out, groups, bytes] -> [out, groups]."""
    begin = index * _SCALE_BYTES
    return blocks[..., begin : begin + _SCALE_BYTES].contiguous().view(torch.float16).squeeze(2)
