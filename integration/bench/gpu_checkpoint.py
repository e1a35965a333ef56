"""A checkpoint of random numbers on disk: shards in the safetensors format, their index, config.json.

Written here, since the library may be missing where this runs; the format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from gpu_model import DTYPE, RandomWeights, model_config, tensor_shapes
from gpu_timing import Bench

_SHARD_BYTES = 5 << 30
_INDEX = "model.safetensors.index.json"
_CHUNK_BYTES = 64 << 20


def size_bytes(is_dry: bool) -> int:
    """Of all tensors."""
    return sum(prod(shape) for shape in tensor_shapes(is_dry).values()) * DTYPE.itemsize


def is_whole(folder: Path, is_dry: bool) -> bool:
    """Whether `write` came to its end there, with this shape: the index is written last."""
    index = folder / _INDEX
    if not index.exists():
        return False
    total: int = json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"]
    return total == size_bytes(is_dry)


def write(folder: Path, bench: Bench) -> None:
    """Into `folder`, which is made. The numbers come from the device, and are others each time."""
    folder.mkdir(exist_ok=True)
    shards = list(_shards(tensor_shapes(bench.is_dry)))
    weight_map, total = {}, 0
    for i, shapes in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(folder / name, shapes, bench.device)
        weight_map |= dict.fromkeys(shapes, name)
    (folder / "config.json").write_text(json.dumps(model_config(bench.is_dry)), encoding="utf-8")
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def read_through(folder: Path) -> None:
    """Every byte once."""
    buffer = bytearray(_CHUNK_BYTES)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Of at most _SHARD_BYTES, or one tensor."""
    shard: dict[str, tuple[int, ...]] = {}
    left = _SHARD_BYTES
    for name, shape in shapes.items():
        size = prod(shape) * DTYPE.itemsize
        if shard and size > left:
            yield shard
            shard, left = {}, _SHARD_BYTES
        shard[name] = shape
        left -= size
    yield shard


def _write_shard(file: Path, shapes: dict[str, tuple[int, ...]], device: torch.device) -> int:
    """Eight bytes of length, a header as JSON, and the numbers in its order; returns the numbers' bytes."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * DTYPE.itemsize
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights = RandomWeights(device)
    with file.open("wb", buffering=0) as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            numbers = memoryview(weights.take(name, *shape).view(torch.uint8).cpu().numpy()).cast("B")
            written = 0
            # The system may take less at once than it is given.
            while written < len(numbers):
                written += opened.write(numbers[written:])
    return end
