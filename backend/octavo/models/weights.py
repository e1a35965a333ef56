"""Where a model's tensors come from: safetensors (mapped, one file or shards) or GGUF, under Hugging Face names.

Knows file formats and the names in them; nothing of what the tensors are for. Pickle is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.errors import ModelLoadError
from octavo.models.gguf_weights import GGUFReader

# Present in some checkpoints and derived from the config here.
_DERIVED_SUFFIXES = ("rotary_emb.inv_freq",)
_SHOWN_NAMES = 3


class WeightReader(Protocol):
    """A set of named tensors on disk."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        ...

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor on CPU, converted to `dtype`; it may share the file's memory map."""
        ...


class WeightSource:
    """Hands out tensors by name, each once, and tells how far it got. Owns the reader and the list of what is left."""

    def __init__(
        self, reader: WeightReader, dtype: torch.dtype, device: torch.device, on_progress: Callable[[str, float], None]
    ) -> None:
        self._reader = reader
        self._dtype = dtype
        self._device = device
        self._on_progress = on_progress
        self._left = set(reader.shapes)
        self._num_tensors = max(len(self._left), 1)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor `name` on the device, in the dtype asked for. Raises ModelLoadError if missing or misshapen."""
        found = self._reader.shapes.get(name)
        if found is None:
            raise ModelLoadError(f"the checkpoint has no tensor {name} of shape {list(shape)}")
        if found != shape:
            raise ModelLoadError(f"tensor {name} has shape {list(found)}; config.json asks for {list(shape)}")
        tensor = self._reader.read(name, self._dtype).to(self._device)
        self._left.discard(name)
        self._on_progress("loading weights", 1.0 - len(self._left) / self._num_tensors)
        return tensor

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Raises ModelLoadError when tensors are left that nobody asked for: the config is not that of the weights."""
        names = sorted(name for name in self._left if name not in ignored and not name.endswith(_DERIVED_SUFFIXES))
        if names:
            shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
            raise ModelLoadError(f"the checkpoint has {len(names)} tensors that config.json does not explain: {shown}")
        self._on_progress("loading weights", 1.0)


class SafetensorsReader:
    """Tensors of one or several safetensors files, memory-mapped."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._handles: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            handle = _open_safetensors(file)
            for name in handle.keys():  # noqa: SIM118  the handle is no mapping
                self._handles[name] = handle
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Conversion from a type of whole numbers, a quantised weight, is refused."""
        tensor: Tensor = self._handles[name].get_tensor(name)
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            raise ModelLoadError(f"tensor {name} is stored as {tensor.dtype}; quantised weights are not supported")
        # A copy even where the type fits: the map must not keep the file's pages alive.
        return tensor.to(dtype, copy=True)


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file} is not a whole safetensors file ({error}); fetch it again") from None


def open_weights(checkpoint: Checkpoint) -> WeightReader:
    """The reader for the checkpoint's format."""
    if checkpoint.gguf is not None:
        return GGUFReader(checkpoint.gguf.reader, checkpoint.config)
    return SafetensorsReader(checkpoint.weight_files)
