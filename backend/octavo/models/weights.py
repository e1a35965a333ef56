"""Where a model's tensors come from: safetensors (mapped, one file or shards) or GGUF, under Hugging Face names.

Knows file formats and the names in them; nothing of what the tensors are for. Pickle is never read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.errors import ModelLoadError, shorten
from octavo.layers.linear import WeightCodes, stack_codes
from octavo.models.gguf_weights import GGUFReader
from octavo.models.pinned_reader import PinnedReader

# Present in some checkpoints; derived from the config here, or of use for an FP8 cache only.
_OPTIONAL_SUFFIXES = ("rotary_emb.inv_freq", ".k_scale", ".v_scale")
_SHOWN_NAMES = 3
_BODY = "model."


class WeightReader(Protocol):
    """A set of named tensors on disk."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        ...

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor, converted to `dtype`, on the reader's device: the CPU, or the one that it was opened for."""
        ...


class WeightSource:
    """Hands out tensors by name, each once, and tells how far it got. Owns the reader and the list of what is left."""

    def __init__(
        self,
        reader: WeightReader,
        dtype: torch.dtype,
        device: torch.device,
        on_progress: Callable[[str, float], None],
        read_codes: Callable[[str], WeightCodes | None] = lambda name: None,
    ) -> None:
        """read_codes: the codes of a tensor that is to stay as it lies in the file, else None."""
        self._reader = reader
        self._read_codes = read_codes
        self._dtype = dtype
        self._device = device
        self._on_progress = on_progress
        self._left = set(reader.shapes)
        self._num_tensors = max(len(self._left), 1)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor `name` on the device, in the dtype asked for. Raises ModelLoadError if missing or misshapen."""
        self._check(name, shape)
        tensor = self._reader.read(name, self._dtype).to(self._device)
        self._took(name)
        return tensor

    def take_codes(self, num_outputs: Mapping[str, int], num_inputs: int) -> WeightCodes | None:
        """The tensors, one on top of the other, as codes of one kind; None where they are not to stay so, or cannot."""
        for name, size in num_outputs.items():
            if name in self._reader.shapes:
                self._check(name, (size, num_inputs))
        parts = [self._read_codes(name) for name in num_outputs]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or len({part.kind for part in found}) > 1:
            return None
        for name in num_outputs:
            self._took(name)
        return stack_codes(found)

    def take_stacked(self, num_outputs: Mapping[str, int], num_inputs: int) -> list[Tensor] | WeightCodes:
        """The weights of one layer, tensors [size, num_inputs] by name: as codes where `take_codes` has some."""
        found = self.take_codes(num_outputs, num_inputs)
        if found is not None:
            return found
        return [self.take(name, size, num_inputs) for name, size in num_outputs.items()]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        found = self._reader.shapes.get(name)
        if found is None:
            raise ModelLoadError(f"the checkpoint has no tensor {name} of shape {list(shape)}")
        if found != shape:
            raise ModelLoadError(f"tensor {name} has shape {list(found)}; config.json asks for {list(shape)}")

    def _took(self, name: str) -> None:
        self._left.discard(name)
        self._on_progress("loading weights", 1.0 - len(self._left) / self._num_tensors)

    def scale_of(self, *names: str) -> float:
        """The number of the first of these tensors that there is, else 1. Raises ModelLoadError if it is no scale."""
        name = next((name for name in names if name in self._reader.shapes), None)
        if name is None:
            return 1.0
        numbers = self._reader.read(name, torch.float32).flatten().tolist()
        self._left.discard(name)
        if len(numbers) != 1 or not 0 < numbers[0] < math.inf:
            raise ModelLoadError(f"tensor {name} is {shorten(numbers)}; expected one finite number above 0")
        return float(numbers[0])

    def finish(self, ignored: tuple[str, ...] = ()) -> None:
        """Raises ModelLoadError when tensors are left that nobody asked for: the config is not that of the weights."""
        names = sorted(name for name in self._left if name not in ignored and not name.endswith(_OPTIONAL_SUFFIXES))
        if names:
            shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
            raise ModelLoadError(f"the checkpoint has {len(names)} tensors that config.json does not explain: {shown}")
        self._on_progress("loading weights", 1.0)


class ShapeSource(WeightSource):
    """Tensors that are only shapes, whatever is asked for: for whom the model is to be built without its weights."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(SafetensorsReader(()), dtype, torch.device("meta"), lambda phase, fraction: None)

    def take(self, name: str, *shape: int) -> Tensor:
        """On the meta device."""
        return torch.empty(shape, dtype=self._dtype, device=self._device)


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


class BodyReader:
    """The tensors of a decoder without its last layer, under the names that they have in a whole one."""

    def __init__(self, reader: WeightReader) -> None:
        self._reader = reader
        self.shapes = {f"{_BODY}{name}": shape for name, shape in reader.shapes.items()}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """As the reader of the body does."""
        return self._reader.read(name.removeprefix(_BODY), dtype)


class EncoderBodyReader:
    """The tensors of an encoder's body, out of a whole model whose names for them begin with `prefix`."""

    def __init__(self, reader: WeightReader, prefix: str) -> None:
        self._reader = reader
        self._prefix = prefix
        body = {name: shape for name, shape in reader.shapes.items() if name.startswith(prefix)}
        self.shapes = {name.removeprefix(prefix): shape for name, shape in body.items()}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """As the reader of the whole does."""
        return self._reader.read(f"{self._prefix}{name}", dtype)


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{file} is not a whole safetensors file ({error}); fetch it again") from None


@contextmanager
def open_weights(checkpoint: Checkpoint, device: torch.device) -> Iterator[WeightReader]:
    """The reader for the checkpoint's format and the device. The tensors taken stay valid after the end."""
    if checkpoint.gguf is not None:
        yield GGUFReader(checkpoint.gguf.reader, checkpoint.config)
    elif device.type == "cuda":
        with PinnedReader(checkpoint.weight_files, device) as reader:
            yield reader
    else:
        yield SafetensorsReader(checkpoint.weight_files)
