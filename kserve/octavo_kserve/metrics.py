"""The engines' numbers for prometheus-client's page: each scrape reads one snapshot of each engine.

What is reported is octavo's table; this knows only how prometheus-client wants to be told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from octavo import METRICS, EngineStats, Histogram, HistogramMetric, Metric, MetricKind
from octavo_kserve.served_model import Models, ServedModel

MODEL_LABEL = "model_name"

Snapshots = Sequence[tuple[ServedModel, EngineStats]]


class EngineCollector(Collector):
    """All models' metrics. Counters and buckets are exact: they are read, not observed again."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Family]:
        """Every family, read from one snapshot a model, so that its numbers belong together."""
        snapshots = [
            (model, model.engine.stats()) for model in self._models if not model.engine.config.disable_log_stats
        ]
        for metric in METRICS:
            yield _histogram(metric, snapshots) if isinstance(metric, HistogramMetric) else _values(metric, snapshots)
        yield _cache_config(snapshots)
        yield _lora(snapshots)


def _values(metric: Metric, snapshots: Snapshots) -> Family:
    names = [MODEL_LABEL, metric.label] if metric.label else [MODEL_LABEL]
    kind = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.text, labels=names)
    for model, stats in snapshots:
        for value, read in metric.read.items():
            family.add_metric([model.name, value] if metric.label else [model.name], float(read(stats)))
    return family


def _histogram(metric: HistogramMetric, snapshots: Snapshots) -> Family:
    family = HistogramMetricFamily(metric.name, metric.text, labels=[MODEL_LABEL])
    for model, stats in snapshots:
        found = metric.read(stats)
        family.add_metric([model.name], cumulative(found), found.sum)
    return family


def cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Its buckets as the page has them: how many observations are at most each bound."""
    bounds = [*histogram.bounds, float("inf")]
    return list(zip(map(floatToGoString, bounds), map(float, accumulate(histogram.counts)), strict=True))


def _cache_config(snapshots: Snapshots) -> Family:
    """What a router takes to know how many tokens fit: a gauge of 1 whose labels are the answer."""
    labels = [MODEL_LABEL, "block_size", "num_gpu_blocks"]
    family = GaugeMetricFamily("vllm:cache_config_info", "Sizes of the KV cache", labels=labels)
    for model, stats in snapshots:
        family.add_metric([model.name, str(stats.block_size), str(stats.num_blocks)], 1.0)
    return family


def _lora(snapshots: Snapshots) -> Family:
    """No adapter is served; routers that look for the family find it empty."""
    labels = [MODEL_LABEL, "max_lora", "running_lora_adapters", "waiting_lora_adapters"]
    family = GaugeMetricFamily("vllm:lora_requests_info", "Adapters in use, as of the value", labels=labels)
    for model, _ in snapshots:
        family.add_metric([model.name, "0", "", ""], time.time())
    return family
