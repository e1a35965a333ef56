"""Rows of a table by index, on CPU with the threads of the other C kernels.

Torch's own operator would wake OpenMP's threads: these then spin for milliseconds on the cores that our kernels need.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from octavo.kernels import native


class _Call(ctypes.Structure):
    """`struct gather_rows` of gather_rows.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "table", "indices")),
        *((name, ctypes.c_int64) for name in ("num_indices", "num_rows", "row_bytes", "num_threads")),
    )


def gather_rows(table: Tensor, indices: Tensor) -> Tensor:
    """out[i] = table[indices[i]]. table: [n, width], contiguous; indices: int64 [T]. Returns [T, width].

    Raises IndexError for an index outside of the table.
    """
    kernel = native.function("octavo_gather_rows", table)
    if kernel is None:
        return gather_rows_reference(table, indices)
    assert table.is_contiguous() and indices.is_contiguous() and indices.dtype == torch.int64
    (num_rows, width), num_indices = table.shape, indices.shape[0]
    output = torch.empty(num_indices, width, dtype=table.dtype)
    call = _Call(
        output.data_ptr(),
        table.data_ptr(),
        indices.data_ptr(),
        num_indices,
        num_rows,
        width * table.itemsize,
        torch.get_num_threads(),
    )
    if kernel(ctypes.byref(call)):
        raise IndexError(f"an index is outside of 0..{num_rows - 1}")
    return output


def gather_rows_reference(table: Tensor, indices: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    return table.index_select(0, indices)
