"""One safetensors file, open for reading: which tensors lie where in it. Reads bytes, makes no tensors.

Format: 8 bytes with the header's length (little endian), the header (JSON), the tensors' bytes; offsets count from the
header's end. https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.errors import ModelLoadError

_LENGTH_BYTES = 8
_LARGEST_HEADER_BYTES = 100 << 20
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `offset` and `size_bytes` in the file. `kind` is the format's name of its type."""

    file: SafetensorsFile
    shape: tuple[int, ...]
    kind: str
    offset: int
    size_bytes: int

    @property
    def dtype(self) -> torch.dtype | None:
        """None for what is no plain floating-point type: whole numbers, quantised weights."""
        return _DTYPES.get(self.kind)


class SafetensorsFile:
    """Owns the file descriptor. `tensors` are in the order in which they lie in the file."""

    def __init__(self, path: Path) -> None:
        """Raises ModelLoadError when the file is missing, truncated or no safetensors file."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._broken(error.strerror) from None
        try:
            self.tensors = self._read_header()
        except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
            self.close()
            raise self._broken(error) from None

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fills `target` with what lies at `offset`. Raises OSError, EOFError where the file has become shorter."""
        done = 0
        while done < len(target):
            count = os.preadv(self._fd, [target[done:]], offset + done)
            if not count:
                raise EOFError(f"the file ends at byte {os.fstat(self._fd).st_size}")
            done += count

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _read_header(self) -> dict[str, StoredTensor]:
        size = os.fstat(self._fd).st_size
        length = int.from_bytes(os.pread(self._fd, _LENGTH_BYTES, 0), "little")
        start = _LENGTH_BYTES + length
        if not 2 <= length <= _LARGEST_HEADER_BYTES or start > size:
            raise ValueError("its header is cut off or has a wrong length")
        header = json.loads(os.pread(self._fd, length, _LENGTH_BYTES))
        header.pop("__metadata__", None)
        found = {name: self._stored(entry, start) for name, entry in header.items()}
        for name, tensor in found.items():
            if tensor.offset + tensor.size_bytes > size:
                raise ValueError(f"tensor {name} ends at byte {tensor.offset + tensor.size_bytes}, the file has {size}")
        return dict(sorted(found.items(), key=lambda item: item[1].offset))

    def _stored(self, entry: dict[str, Any], start: int) -> StoredTensor:
        begin, end = entry["data_offsets"]
        tensor = StoredTensor(self, tuple(entry["shape"]), entry["dtype"], start + begin, end - begin)
        if begin < 0 or end < begin or any(size < 0 for size in tensor.shape):
            raise ValueError(f"a tensor lies at {begin}..{end} with shape {list(tensor.shape)}")
        if tensor.dtype is not None and math.prod(tensor.shape) * tensor.dtype.itemsize != tensor.size_bytes:
            raise ValueError(f"a tensor of shape {list(tensor.shape)} and type {tensor.kind} has {end - begin} bytes")
        return tensor

    def _broken(self, why: object) -> ModelLoadError:
        return ModelLoadError(f"{self.path} is not a whole safetensors file ({why}); fetch it again")
