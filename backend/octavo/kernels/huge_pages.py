"""Memory for weights on CPU, on 2 MiB pages where the system grants them: reading them is then about twice as fast.

Small tensors share large chunks, since one of less than 2 MiB could not have a page of its own.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading

import torch
from torch import Tensor

_PAGE_BYTES = 2 << 20
_CHUNK_BYTES = 32 << 20
_ALIGNMENT_BYTES = 64


class _Arena:
    """Hands out pieces of the current chunk, which lives as long as any tensor made from it."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes], not initialised."""
        with self._lock:
            begin = -(-self._used // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            if begin + num_bytes > self._chunk.shape[0]:
                self._chunk = _huge_chunk(max(num_bytes, _CHUNK_BYTES))
                begin = 0
            self._used = begin + num_bytes
            return self._chunk[begin : self._used]


_arena = _Arena()


def empty_in_huge_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor, 64-byte aligned, that is meant to stay for long."""
    return _arena.take(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def _huge_chunk(num_bytes: int) -> Tensor:
    size = -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
    raw = torch.empty(size + _PAGE_BYTES, dtype=torch.uint8)
    begin = -raw.data_ptr() % _PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Only advice: where it is refused the pages are small, and everything else is the same.
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        madvise(raw.data_ptr() + begin, size, mmap.MADV_HUGEPAGE)
    return raw[begin : begin + size]
