"""EngineStats: one snapshot of the engine's counters, gauges and histograms. Knows no exporter."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many observations fell where, and their sum.

    Bucket i holds what is above `bounds[i - 1]` and at most `bounds[i]`; one more bucket than bounds holds the rest.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sums: tuple[float, ...]

    @property
    def count(self) -> int:
        """Observations in all buckets."""
        return sum(self.counts)

    @property
    def sum(self) -> float:
        """Sum of all observations."""
        return sum(self.sums)

    def coarsened(self, bounds: tuple[float, ...]) -> Histogram:
        """The same observations in wider buckets: `bounds` are some of this one's."""
        assert set(bounds) <= set(self.bounds), "buckets can be joined, not split"
        counts = [0] * (len(bounds) + 1)
        sums = [0.0] * (len(bounds) + 1)
        places = [*(bisect_left(bounds, bound) for bound in self.bounds), len(bounds)]
        for place, count, total in zip(places, self.counts, self.sums, strict=True):
            counts[place] += count
            sums[place] += total
        return Histogram(bounds, tuple(counts), tuple(sums))


@dataclass(frozen=True, slots=True, kw_only=True)
class Histograms:
    """What was observed of requests that brought a token. One that ended without is in none of them.

    Counted once a request, at its first token: time to it, time in the queue (arrival to first scheduled), of the
    prefill (to the first token), prompt tokens and n. At its end, whatever the reason: the whole time, and that
    from the first token to the last. For each of its sequences: every gap between tokens, and at its end the tokens.
    """

    time_to_first_token_s: Histogram
    time_per_output_token_s: Histogram
    e2e_s: Histogram
    queue_s: Histogram
    prefill_s: Histogram
    decode_s: Histogram
    num_prompt_tokens: Histogram
    num_generation_tokens: Histogram
    params_n: Histogram


@dataclass(slots=True, kw_only=True)
class Observations:
    """New values for the histograms of the same names."""

    time_to_first_token_s: list[float] = field(default_factory=list)
    time_per_output_token_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    num_prompt_tokens: list[float] = field(default_factory=list)
    num_generation_tokens: list[float] = field(default_factory=list)
    params_n: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """One reading of the engine. Counters (`..._total`) grow for the engine's life; the others are as of now.

    `kv_cache_usage` and `kv_cache_waste` are fractions from 0 to 1: blocks in use of all blocks, and slots that are
    allocated but hold no token of all allocated slots. `startup_s` is what each phase of start-up took, in seconds.
    `histograms` are made where requests arrive and their tokens are handed on: a reading of the bare engine, which
    crosses the process boundary with every step, has none.
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
    startup_s: dict[str, float] = field(default_factory=dict)
    histograms: Histograms | None = None

    @property
    def num_used_blocks(self) -> int:
        """KV blocks that live sequences hold."""
        return self.num_blocks - self.num_free_blocks

    @property
    def kv_cache_usage(self) -> float:
        """Fraction of KV blocks that live sequences hold."""
        return self.num_used_blocks / self.num_blocks if self.num_blocks else 0.0


def percentile(values: Sequence[float], fraction: float) -> float:
    """The nearest-rank percentile of `values` (0 <= fraction <= 1); 0.0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]
