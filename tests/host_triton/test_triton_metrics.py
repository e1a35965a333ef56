"""The metrics reporter: one thread, and metrics gone before their families."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

from octavo import EngineStats
from octavo_triton.metrics import GAUGES, MetricsReporter

WAIT_S = 10


def test_gauges_show_a_snapshot_of_the_engine(metric_families: list[Any]) -> None:
    read = threading.Event()

    def stats() -> EngineStats:
        read.set()
        return EngineStats(num_requests_running=3, num_requests_waiting=2, num_blocks=10, num_free_blocks=4)

    reporter = MetricsReporter(stats, {"model": "m", "version": "1"})
    assert read.wait(WAIT_S)
    reporter.close()
    shown = {family.name: family.metrics[0] for family in metric_families}
    assert {name: metric.values[-1] for name, metric in shown.items()} == {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.6,
    }
    assert all(metric.labels == {"model": "m", "version": "1"} for metric in shown.values())


def test_only_the_reporters_thread_touches_metrics_and_they_end_with_it(metric_families: list[Any]) -> None:
    done = threading.Event()

    def stats() -> EngineStats:
        done.set()
        return EngineStats(num_requests_running=1)

    reporter = MetricsReporter(stats, {})
    assert done.wait(WAIT_S)
    assert metric_families[-1].reported.wait(WAIT_S)
    metrics = [metric for family in metric_families for metric in family.metrics]
    assert all(len(metric.threads) == 1 and threading.get_ident() not in metric.threads for metric in metrics)
    kept = [weakref.ref(metric) for metric in metrics]
    for family in metric_families:
        family.metrics.clear()
    del metrics
    reporter.close()
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(GAUGES)


def test_stats_that_break_end_the_reporting_and_nothing_else(metric_families: list[Any]) -> None:
    def stats() -> EngineStats:
        raise RuntimeError("engine gone")

    MetricsReporter(stats, {}).close()
    assert len(metric_families) == len(GAUGES)
