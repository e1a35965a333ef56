"""The KV cache's memory: how many blocks, the tensors of each layer, and copies between blocks.

Knows no sequence: which block belongs to whom is the scheduler's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.config import EngineConfig
from octavo.errors import ModelLoadError

_GIB = 1 << 30
_CPU_LARGEST_DEFAULT_BYTES = 2 * _GIB
_CPU_DEFAULT_FRACTION = 0.25
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class KVCacheLayout:
    """The shape of the cache: one tensor a layer, [num_blocks, 2, num_kv_heads, block_size, head_dim]."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * self.num_layers * self.num_kv_heads * self.block_size * self.head_dim * self.dtype.itemsize

    def num_blocks(self, config: EngineConfig) -> int:
        """Blocks to allocate on a CPU, the null block included, for a resolved config.

        `num_gpu_blocks_override` is taken as it is. Else as many as fit the memory, but no more than `max_num_seqs`
        sequences of `max_model_len` can use. Raises ModelLoadError when not even one such sequence fits. On a GPU:
        memory_plan.py.
        """
        assert config.max_model_len is not None and config.max_num_seqs is not None
        if config.num_gpu_blocks_override is not None:
            return config.num_gpu_blocks_override
        size_bytes = config.kv_cache_memory_bytes or default_size_bytes(available_memory_bytes())
        num_blocks = self.num_blocks_in(size_bytes, config.max_model_len, "raise kv_cache_memory_bytes")
        return min(num_blocks, config.max_num_seqs * self._blocks_of(config.max_model_len) + 1)

    def num_blocks_in(self, size_bytes: int, max_model_len: int, remedy: str) -> int:
        """How many blocks fit, the null block included.

        Raises ModelLoadError when not even one sequence of `max_model_len` tokens does: with both numbers, `remedy`
        (what would give the cache more memory) and the longest sequence that fits.
        """
        needed = (self._blocks_of(max_model_len) + 1) * self.block_bytes
        if size_bytes < needed:
            longest = max(size_bytes // self.block_bytes - 1, 0) * self.block_size
            raise ModelLoadError(
                f"one sequence of max_model_len {max_model_len} tokens needs {needed} bytes of KV cache, there are "
                f"{max(size_bytes, 0)}: {remedy}"
                + (f" or lower max_model_len to at most {longest}" if longest else "; not one block fits")
            )
        return size_bytes // self.block_bytes

    def _blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int, device: torch.device) -> list[Tensor]:
        """One uninitialised tensor a layer. Not zeroed: on CPU the system commits a page when it is first written.

        Raises ModelLoadError when the memory is not there.
        """
        shape = (num_blocks, 2, self.num_kv_heads, self.block_size, self.head_dim)
        try:
            return [torch.empty(shape, dtype=self.dtype, device=device) for _ in range(self.num_layers)]
        except RuntimeError as error:
            # A CPU's allocator has no error of its own; a GPU's has, and other errors of it mean other things.
            if device.type != "cpu" and not isinstance(error, torch.OutOfMemoryError):
                raise
            if device.type == "cuda":
                # What was got so far is kept by the allocator in pieces that fit this size only.
                torch.cuda.empty_cache()
            raise ModelLoadError(
                f"no memory for {num_blocks} KV blocks of {self.block_bytes} bytes: "
                "lower num_gpu_blocks_override or kv_cache_memory_bytes"
            ) from None


def copy_blocks(kv_caches: list[Tensor], copies: list[tuple[int, int]]) -> None:
    """Copies whole blocks (source, destination), one after the other in the given order, in every layer, in place."""
    for kv_cache in kv_caches:
        for source, destination in copies:
            kv_cache[destination].copy_(kv_cache[source])


def default_size_bytes(available_bytes: int) -> int:
    """Bytes for the cache where the config leaves the choice to us, on CPU."""
    return min(_CPU_LARGEST_DEFAULT_BYTES, int(available_bytes * _CPU_DEFAULT_FRACTION))


def available_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Memory that this process may still take: the machine's, or what a container's limit (cgroup v2 or v1) leaves."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in (
        (cgroup / "memory.max", cgroup / "memory.current"),
        (cgroup / "memory/memory.limit_in_bytes", cgroup / "memory/memory.usage_in_bytes"),
    ):
        try:
            available = min(available, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):
            continue  # no such controller, or "max": no limit
    return max(available, 0)
