"""The engine's numbers on the server's /metrics page.

The server crashes when two threads touch a Metric, and when one outlives its model; so one reporter thread owns them
all, from creation to deletion.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils

from octavo import EngineStats

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.25

# name, what it says, and how it is read from a snapshot
GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("vllm:num_requests_running", "Requests in the running batch", lambda stats: stats.num_requests_running),
    ("vllm:num_requests_waiting", "Requests waiting to be processed", lambda stats: stats.num_requests_waiting),
    ("vllm:kv_cache_usage_perc", "KV-cache usage, 1 is full", lambda stats: stats.kv_cache_usage),
)


class MetricsReporter:
    """Pushes snapshots of the engine's stats into gauges, from a thread of its own. Owns every Metric object."""

    def __init__(self, stats: Callable[[], EngineStats], labels: dict[str, str]) -> None:
        self._stats = stats
        self._labels = labels
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="octavo-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and with it every metric."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            families, gauges = self._create()
        except pb_utils.TritonModelException:
            logger.warning("[vllm] Metrics not supported")
            return
        try:
            while True:
                stats = self._stats()
                for gauge, (_, _, read) in zip(gauges, GAUGES, strict=True):
                    gauge.set(read(stats))
                if self._closing.wait(REPORT_INTERVAL_S):
                    break
        except Exception:
            logger.exception("metrics are no longer reported")
        finally:
            # A family must outlive its metrics.
            gauge = None
            gauges.clear()
            families.clear()

    def _create(self) -> tuple[list[Any], list[Any]]:
        families = [
            pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.GAUGE)
            for name, text, _ in GAUGES
        ]
        return families, [family.Metric(labels=self._labels) for family in families]
