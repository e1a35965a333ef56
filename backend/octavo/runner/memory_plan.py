"""Who gets how much of a GPU's memory: what was measured, and the KV cache, which gets the rest.

Pure arithmetic on numbers that others measured; knows no device, and no model but through its KVCacheLayout.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.config import EngineConfig
from octavo.errors import ModelLoadError
from octavo.runner.kv_cache import KVCacheLayout

logger = logging.getLogger(__name__)

_GIB = 1 << 30
_MIB = 1 << 20
# Of what is free when others hold so much that the share asked for is not there: the driver takes some on the way.
_LARGEST_FRACTION_OF_FREE = 0.98
# A captured graph's own nodes and arguments, beside the tensors that it works on.
_GRAPH_BYTES = 8 * _MIB
# Small graphs are captured first: what they leave in the pool does not serve a larger one in every case.
_GRAPH_POOL_FACTOR = 2
# Blocks, to those that all running sequences can use at their longest.
_MOST_CACHED = 4
_SMALLER = 0.95
_MOST_RETRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What a device's memory is used for besides the KV cache, in bytes.

    other_processes: not free before the engine took anything, its own driver context included. activations: the most
    that any one step needs at once. tables: the rows' tables, staging buffers and the sampler's.
    """

    total: int
    other_processes: int
    weights: int
    activations: int
    graphs: int
    tables: int

    @property
    def free_at_start(self) -> int:
        """What there was before the engine took anything."""
        return self.total - self.other_processes

    @property
    def own(self) -> int:
        """What the engine takes before the KV cache."""
        return self.weights + self.activations + self.graphs + self.tables


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a device's memory is divided. `num_blocks` counts the null block."""

    use: MemoryUse
    layout: KVCacheLayout
    num_blocks: int

    @property
    def kv_cache(self) -> int:
        """Bytes of the KV cache."""
        return self.num_blocks * self.layout.block_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens that the KV cache holds; the null block holds none."""
        return (self.num_blocks - 1) * self.layout.block_size

    def lines(self, max_model_len: int) -> list[str]:
        """The plan for people, one line a part."""
        parts = {
            "weights": self.use.weights,
            "activations": self.use.activations,
            "graphs": self.use.graphs,
            "sampler and tables": self.use.tables,
            "other processes": self.use.other_processes,
        }
        cache = f"{self.num_tokens:,} tokens ({self.num_tokens / max_model_len:.1f} x max_model_len)"
        free = self.use.free_at_start - self.use.own - self.kv_cache
        return [
            f"device memory {_gib(self.use.total)}",
            *(f"{name} {_gib(size)}" for name, size in parts.items()),
            f"KV cache {_gib(self.kv_cache)} = {cache}",
            f"left free {_gib(free)}",
        ]


def plan_memory(use: MemoryUse, layout: KVCacheLayout, config: EngineConfig) -> MemoryPlan:
    """Divides the memory for a resolved `config`.

    The engine takes `gpu_memory_utilization` of the whole device, less where other processes have left less; with
    `kv_cache_memory_bytes` or `num_gpu_blocks_override` the cache is as large as they say. Raises ModelLoadError with
    the numbers, and what to change, when what is asked for does not fit, or not one sequence of `max_model_len`.
    """
    assert config.max_model_len is not None
    if config.num_gpu_blocks_override is not None:
        _check_fits("num_gpu_blocks_override", config.num_gpu_blocks_override * layout.block_bytes, use)
        return MemoryPlan(use, layout, config.num_gpu_blocks_override)
    if config.kv_cache_memory_bytes is not None:
        _check_fits("kv_cache_memory_bytes", config.kv_cache_memory_bytes, use)
        size_bytes, remedy = config.kv_cache_memory_bytes, "raise kv_cache_memory_bytes"
    else:
        share = int(use.total * config.gpu_memory_utilization)
        available = int(use.free_at_start * _LARGEST_FRACTION_OF_FREE)
        size_bytes = min(share, available) - use.own
        remedy = f"raise gpu_memory_utilization ({config.gpu_memory_utilization:g})"
        if available < share:
            remedy = "free memory that other processes hold"
    try:
        num_blocks = layout.num_blocks_in(size_bytes, config.max_model_len, remedy)
        if config.kv_cache_memory_bytes is None:
            num_blocks = min(num_blocks, _most_blocks(layout, config))
        return MemoryPlan(use, layout, num_blocks)
    except ModelLoadError as error:
        raise ModelLoadError(f"{error} (device memory {_described(use)})") from None


def _most_blocks(layout: KVCacheLayout, config: EngineConfig) -> int:
    """What all sequences can use, and some times as much of cached prefixes: more only costs the host memory."""
    assert config.max_num_seqs is not None and config.max_model_len is not None
    return _MOST_CACHED * config.max_num_seqs * -(-config.max_model_len // layout.block_size) + 1


def estimated_graph_bytes(step_bytes: int, num_graphs: int) -> int:
    """What capturing decode steps will take, known before it can be measured: graphs hold the KV cache's addresses.

    step_bytes: activations of the largest step that is captured.
    """
    return _GRAPH_POOL_FACTOR * step_bytes + num_graphs * _GRAPH_BYTES if num_graphs else 0


def allocate_shrinking(layout: KVCacheLayout, num_blocks: int, device: torch.device) -> tuple[list[Tensor], int]:
    """The tensors of a KV cache of `num_blocks`, or of somewhat fewer, and how often it was made smaller.

    Out of memory (another process was quicker, the allocator's pages are ragged) takes 5 % of the blocks away, a few
    times; then it raises ModelLoadError.
    """
    for num_retries in range(_MOST_RETRIES + 1):
        try:
            return layout.allocate(num_blocks, device), num_retries
        except ModelLoadError as error:
            smaller = int(num_blocks * _SMALLER)
            if num_retries == _MOST_RETRIES or smaller < 2:
                raise ModelLoadError(f"{error}, or lower gpu_memory_utilization") from None
            logger.warning("no memory for %d KV blocks: trying %d", num_blocks, smaller)
            num_blocks = smaller
    raise AssertionError("the last try returns or raises")


def _check_fits(setting: str, size_bytes: int, use: MemoryUse) -> None:
    if size_bytes > use.free_at_start - use.own:
        raise ModelLoadError(
            f"{setting} asks for {_gib(size_bytes)} of KV cache, {_gib(max(use.free_at_start - use.own, 0))} are left: "
            f"lower it (device memory {_described(use)})"
        )


def _described(use: MemoryUse) -> str:
    return (
        f"{_gib(use.total)}: other processes {_gib(use.other_processes)}, weights {_gib(use.weights)}, "
        f"activations {_gib(use.activations)}, graphs {_gib(use.graphs)}, sampler and tables {_gib(use.tables)}"
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
