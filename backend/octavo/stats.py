"""EngineStats: one snapshot of the engine's counters and gauges. Knows no exporter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """One reading of the engine. Counters (`..._total`) grow for the engine's life; the others are as of now.

    `kv_cache_usage` and `kv_cache_waste` are fractions from 0 to 1: blocks in use of all blocks, and slots that are
    allocated but hold no token of all allocated slots.
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    block_size: int = 0
    kv_cache_waste: float = 0.0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    prefix_cache_queries_total: int = 0
    prefix_cache_hits_total: int = 0
    steps_total: int = 0
    fallbacks_total: int = 0
    engine_restarts_total: int = 0
    finished_total: dict[str, int] = field(default_factory=dict)

    @property
    def kv_cache_usage(self) -> float:
        """Fraction of KV blocks that live sequences hold."""
        return 1 - self.num_free_blocks / self.num_blocks if self.num_blocks else 0.0


def percentile(values: Sequence[float], fraction: float) -> float:
    """The nearest-rank percentile of `values` (0 <= fraction <= 1); 0.0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]
