"""METRICS: what every host exports of EngineStats, under vLLM's names where the meaning is the same.

A table only: knows no exporter; the labels that name the model are the host's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from octavo.outputs import FinishReason
from octavo.stats import EngineStats, Histogram

Read = Callable[[EngineStats], float]
Bounds = tuple[float, ...]

# vLLM's buckets, in seconds.
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_WHOLE = (1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_PART: Bounds = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_PART += (120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_PARAMS_N = (1.0, 2.0, 5.0, 10.0, 20.0)
# Ours, where with vLLM's the normal case of a small model or a fast device falls into one bucket.
_FINE_TOKEN: Bounds = (0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03)
_FINE_TOKEN += (0.04, 0.05, 0.075, 0.1, 0.25, 1.0)
_FINE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class MetricKind(StrEnum):
    """How its values go on: only up, up and down, or as observations in buckets."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter or a gauge; with a `label`, one for each of its values. `read` by that value, "" without a label."""

    kind: MetricKind
    name: str
    text: str
    read: dict[str, Read]
    label: str = ""

    def labels(self, value: str) -> dict[str, str]:
        """The labels of one of them, to stand beside those that name the model."""
        return {self.label: value} if self.label else {}


@dataclass(frozen=True, slots=True)
class HistogramMetric:
    """A histogram: the field `source` of Histograms, in buckets of `bounds`; None for the buckets it was made with."""

    name: str
    text: str
    source: str
    bounds: Bounds | None = None

    @property
    def kind(self) -> MetricKind:
        """Always HISTOGRAM."""
        return MetricKind.HISTOGRAM

    def read(self, stats: EngineStats) -> Histogram:
        """As of `stats`, which must come from where requests are handled: AsyncEngine or LLM."""
        histogram: Histogram = getattr(stats.histograms, self.source)
        return histogram if self.bounds is None else histogram.coarsened(self.bounds)


def _counter(name: str, text: str, read: Read) -> Metric:
    return Metric(MetricKind.COUNTER, name, text, {"": read})


def _gauge(name: str, text: str, read: Read) -> Metric:
    return Metric(MetricKind.GAUGE, name, text, {"": read})


def _ended(*reasons: FinishReason) -> Read:
    return lambda stats: sum(stats.finished_total.get(reason.value, 0) for reason in reasons)


_KV_CACHE_BLOCKS: dict[str, Read] = {
    "tokens_per": lambda stats: stats.block_size,
    "used": lambda stats: stats.num_used_blocks,
    "max": lambda stats: stats.num_blocks,
}
# vLLM knows three reasons. What failed or was refused is none of its successes.
_SUCCESSES: dict[str, Read] = {
    "stop": _ended(FinishReason.STOP),
    "length": _ended(FinishReason.LENGTH),
    "abort": _ended(FinishReason.CANCELLED, FinishReason.DEADLINE),
}
_ENDS: dict[str, Read] = {reason.value: _ended(reason) for reason in FinishReason}
# What executors call the phases of start-up.
_STARTUP_PHASES = ("import", "loading weights", "memory plan", "KV cache", "warm up", "graphs")


def _startup(phase: str) -> Read:
    return lambda stats: stats.startup_s.get(phase, 0.0)


_KV_USAGE = "Fraction of the KV cache's blocks in use, from 0 to 1"

METRICS: tuple[Metric | HistogramMetric, ...] = (
    _gauge("vllm:num_requests_running", "Sequences in the running batch", lambda s: s.num_requests_running),
    _gauge("vllm:num_requests_waiting", "Sequences that wait for their turn", lambda s: s.num_requests_waiting),
    _gauge("vllm:kv_cache_usage_perc", _KV_USAGE, lambda s: s.kv_cache_usage),
    _gauge("vllm:gpu_cache_usage_perc", _KV_USAGE, lambda s: s.kv_cache_usage),
    Metric(
        MetricKind.GAUGE,
        "nv_trt_llm_kv_cache_block_metrics",
        "The KV cache's blocks: tokens that one holds, how many are used, how many there are",
        _KV_CACHE_BLOCKS,
        "kv_cache_block_type",
    ),
    _gauge("octavo:kv_cache_waste_perc", "Fraction of allocated KV slots without a token", lambda s: s.kv_cache_waste),
    _counter("vllm:prompt_tokens_total", "Prompt tokens processed", lambda s: s.prompt_tokens_total),
    _counter("vllm:generation_tokens_total", "Tokens generated", lambda s: s.generation_tokens_total),
    _counter("vllm:num_preemptions_total", "Sequences sent back to wait", lambda s: s.preemptions_total),
    _counter(
        "vllm:prefix_cache_queries_total",
        "Tokens looked up in the prefix cache",
        lambda s: s.prefix_cache_queries_total,
    ),
    _counter("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache", lambda s: s.prefix_cache_hits_total),
    Metric(
        MetricKind.COUNTER,
        "vllm:request_success_total",
        "Sequences that ended without an error",
        _SUCCESSES,
        "finished_reason",
    ),
    Metric(
        MetricKind.COUNTER,
        "octavo:request_finished_total",
        "Sequences that ended, by every reason there is",
        _ENDS,
        "finished_reason",
    ),
    Metric(
        MetricKind.GAUGE,
        "octavo:startup_seconds",
        "What each phase took when the engine was started last",
        {phase: _startup(phase) for phase in _STARTUP_PHASES},
        "phase",
    ),
    _counter("octavo:steps_total", "Steps computed", lambda s: s.steps_total),
    _counter("octavo:fallbacks_total", "Times a slower way than intended was taken", lambda s: s.fallbacks_total),
    _counter("octavo:engine_restarts_total", "Engine processes started anew", lambda s: s.engine_restarts_total),
    HistogramMetric(
        "vllm:time_to_first_token_seconds", "From arrival to the first token", "time_to_first_token_s", _FIRST_TOKEN
    ),
    HistogramMetric("vllm:e2e_request_latency_seconds", "From arrival to the end", "e2e_s", _WHOLE),
    HistogramMetric("vllm:request_queue_time_seconds", "From arrival until first scheduled", "queue_s", _PART),
    HistogramMetric("vllm:request_prefill_time_seconds", "From there to the first token", "prefill_s", _PART),
    HistogramMetric("vllm:request_decode_time_seconds", "From the first to the last token", "decode_s", _PART),
    HistogramMetric("vllm:request_prompt_tokens", "Prompt tokens of a request", "num_prompt_tokens"),
    HistogramMetric("vllm:request_generation_tokens", "Tokens generated for a sequence", "num_generation_tokens"),
    HistogramMetric("vllm:request_params_n", "Completions that a request asked for", "params_n", _PARAMS_N),
    HistogramMetric("octavo:e2e_request_latency_seconds", "From arrival to the end", "e2e_s", _FINE),
    HistogramMetric("octavo:request_queue_time_seconds", "From arrival until first scheduled", "queue_s", _FINE),
    HistogramMetric("octavo:request_prefill_time_seconds", "From there to the first token", "prefill_s", _FINE),
    HistogramMetric("octavo:request_decode_time_seconds", "From the first to the last token", "decode_s", _FINE),
    HistogramMetric("vllm:time_per_output_token_seconds", "Gaps between tokens", "time_per_output_token_s", _TOKEN),
    HistogramMetric(
        "octavo:time_per_output_token_seconds", "Gaps between tokens", "time_per_output_token_s", _FINE_TOKEN
    ),
)


def recorded_bounds(source: str, max_model_len: int) -> Bounds:
    """The buckets to record a field of Histograms in, so that each metric made of it can join some of them.

    Numbers of tokens are recorded in a 1-2-5 series up to `max_model_len`.
    """
    wanted = [metric.bounds for metric in METRICS if isinstance(metric, HistogramMetric) and metric.source == source]
    if None in wanted:
        series = (step * 10.0**power for power in range(len(str(max_model_len))) for step in (1, 2, 5))
        return tuple(bound for bound in series if bound <= max_model_len)
    return tuple(sorted(set(chain.from_iterable(bounds for bounds in wanted if bounds))))
