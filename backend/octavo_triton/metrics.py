"""The engine's numbers on the server's /metrics page.

The server crashes when two threads touch a Metric, when one outlives its model, and when two processes that share its
labels do not delete it at once; so one reporter thread, the only one with these labels, owns all from creation to
deletion. What is reported is octavo's table; this knows only how the server wants to be told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from math import inf, nextafter
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils

from octavo import METRICS, EngineStats, HistogramMetric, Metric, MetricKind
from octavo_triton.server_command import server_option
from octavo_triton.server_wide_lock import ServerWideLock

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.25
# An observation is a message to the server (16 to 18 us, half of it in this process), and each gap between tokens is
# two of them. A round makes at most so many, and rounds that leave some over may take this share of the time: some
# 10,000 a second. Above 5,000 tokens a second the gaps on the page fall behind; they catch up when the rate falls.
ROUND_OBSERVATIONS = 1000
BUSY_SHARE = 0.2
LAST_ROUNDS_S = 0.5
_METRICS_OPTION = "--allow-metrics"


class Sample(Protocol):
    """One line of the page (a histogram: its lines), which remembers what it has told the server."""

    def report(self, stats: EngineStats, budget: int) -> int:
        """Tells the server what is new, with at most `budget` observations; returns how many it took."""
        ...


class Counter:
    """Reports how much its value has grown."""

    def __init__(self, metric: Any, read: Callable[[EngineStats], float]) -> None:
        self._metric, self._read = metric, read
        self._told = 0.0

    def report(self, stats: EngineStats, budget: int) -> int:
        """Costs no observation."""
        value = self._read(stats)
        if value > self._told:
            self._metric.increment(value - self._told)
            self._told = value
        return 0


class Gauge:
    """Reports its value where it has changed."""

    def __init__(self, metric: Any, read: Callable[[EngineStats], float]) -> None:
        self._metric, self._read = metric, read
        self._told: float | None = None

    def report(self, stats: EngineStats, budget: int) -> int:
        """Costs no observation."""
        value = self._read(stats)
        if value != self._told:
            self._metric.set(value)
            self._told = value
        return 0


class HistogramSample:
    """Reports what is new in each bucket, as so many observations of its mean: the count and the sum are exact.

    The server takes one observation at a time; those that the budget leaves over are told in later rounds.
    """

    def __init__(self, metric: Any, source: HistogramMetric, bounds: tuple[float, ...]) -> None:
        self._metric, self._source = metric, source
        self._told_counts = [0] * (len(bounds) + 1)
        self._told_sums = [0.0] * (len(bounds) + 1)
        # The mean of what is in a bucket is in it too, but for rounding.
        self._ranges = list(zip([-inf, *(nextafter(bound, inf) for bound in bounds)], [*bounds, inf], strict=True))

    def report(self, stats: EngineStats, budget: int) -> int:
        """Each bucket gets its share of a budget that is too small: were one told first, it would hide the others."""
        found = self._source.read(stats)
        new = [count - told for count, told in zip(found.counts, self._told_counts, strict=True)]
        num_untold, left = sum(new), budget
        # The slowest first, rounded up: they are few, and what one looks for.
        for i in reversed(range(len(new))):
            if new[i]:
                num_now = min(-(-new[i] * left // num_untold), new[i])
                self._tell(i, num_now, (found.sums[i] - self._told_sums[i]) / new[i])
                num_untold -= new[i]
                left -= num_now
        return budget - left

    def _tell(self, bucket: int, times: int, mean: float) -> None:
        lowest, highest = self._ranges[bucket]
        mean = min(max(mean, lowest), highest)
        for _ in range(times):
            self._metric.observe(mean)
        self._told_counts[bucket] += times
        self._told_sums[bucket] += times * mean


class Page:
    """What this model has on the page. Owns every Metric and MetricFamily object."""

    def __init__(self) -> None:
        self._families: list[Any] = []
        self._samples: deque[Sample] = deque()

    def create(self, stats: EngineStats, labels: dict[str, str]) -> None:
        """Puts everything on the page. Raises TritonModelException when the server has metrics switched off."""
        known = [metric for metric in METRICS if hasattr(pb_utils.MetricFamily, metric.kind.name)]
        for metric in known:
            kind = getattr(pb_utils.MetricFamily, metric.kind.name)
            family = pb_utils.MetricFamily(name=metric.name, description=metric.text, kind=kind)
            self._families.append(family)
            self._samples += _samples(family, metric, stats, labels)
        if len(known) < len(METRICS):
            logger.warning("this Triton server knows no histograms: times are not reported")

    def report(self, stats: EngineStats, budget: int = ROUND_OBSERVATIONS) -> bool:
        """Tells the server what is new; whether that was all. The next round begins where this one has to stop."""
        left = budget
        for place, sample in enumerate(self._samples):
            left -= sample.report(stats, left)
            if not left:
                self._samples.rotate(-place - 1)
                return False
        return True

    def clear(self) -> None:
        """Takes everything off the page: a family must outlive its metrics."""
        self._samples.clear()
        self._families.clear()


def _samples(family: Any, metric: Metric | HistogramMetric, stats: EngineStats, labels: dict[str, str]) -> list[Sample]:
    if isinstance(metric, HistogramMetric):
        bounds = metric.read(stats).bounds
        return [HistogramSample(family.Metric(labels=labels, buckets=list(bounds)), metric, bounds)]
    sample = Counter if metric.kind is MetricKind.COUNTER else Gauge
    return [sample(family.Metric(labels=labels | metric.labels(value)), read) for value, read in metric.read.items()]


class MetricsReporter:
    """Pushes snapshots of the engine's stats into the page, from a thread of its own.

    For all stubs together, the server has one line of its page for the same labels, and forgets it when the first of
    them deletes its Metric: the next report of another ends the server. A model that is reloaded in place has two
    stubs for a while, so the new one waits until the old one's lines are gone. Snapshots count from the load: it
    loses nothing by that.
    """

    def __init__(self, stats: Callable[[], EngineStats], labels: dict[str, str]) -> None:
        self._stats = stats
        self._labels = labels
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="octavo-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reports what is left, for LAST_ROUNDS_S seconds at most, and ends the thread and with it every metric."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            lock = ServerWideLock("metrics", *(f"{key}={value}" for key, value in sorted(self._labels.items())))
            while not lock.acquire():
                if self._closing.wait(REPORT_INTERVAL_S):
                    return
        except OSError:
            logger.exception("metrics are not reported")
            return
        self._own_page()
        # Each deletion has waited for the server's: now it has no Metric with these labels.
        lock.release()

    def _own_page(self) -> None:
        page = Page()
        try:
            page.create(self._stats(), self._labels)
            self._report_until_closed(page)
        except pb_utils.TritonModelException as error:
            logger.warning("[vllm] Metrics not supported (%s)", error)
        except Exception:
            logger.exception("metrics are no longer reported")
        finally:
            page.clear()

    def _report_until_closed(self, page: Page) -> None:
        wait_s = 0.0
        while not self._closing.wait(wait_s):
            start = time.monotonic()
            everything = page.report(self._stats())
            wait_s = REPORT_INTERVAL_S if everything else (time.monotonic() - start) * (1 / BUSY_SHARE - 1)
        stats, end = self._stats(), time.monotonic() + LAST_ROUNDS_S
        while not page.report(stats) and time.monotonic() < end:
            pass


def start_reporting(stats: Callable[[], EngineStats], labels: dict[str, str]) -> MetricsReporter | None:
    """A reporter, unless the server has metrics switched off, which release 24.10 does not tell in any other way."""
    if server_option(_METRICS_OPTION) in ("false", "off", "0"):
        logger.warning("[vllm] Metrics not supported (the server was started with %s=false)", _METRICS_OPTION)
        return None
    return MetricsReporter(stats, labels)


def labels_of(args: Mapping[str, str], model_config: Mapping[str, Any]) -> dict[str, str]:
    """The model and its version; and the instance where the model has several, so that each has lines of its own."""
    labels = {"model": args["model_name"], "version": args["model_version"]}
    num_instances = 0
    for group in model_config.get("instance_group", ()):
        num_devices = len(group.get("gpus", ())) if group.get("kind") == "KIND_GPU" else 1
        num_instances += int(group.get("count", 1)) * max(num_devices, 1)
    return labels | {"instance": args["model_instance_name"]} if num_instances > 1 else labels
