"""The metrics reporter: what it tells the server, from one thread, and that metrics are gone before their families."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import pytest

from octavo import METRICS, EngineStats
from octavo.recorder import Recorder
from octavo.stats import Observations
from octavo_triton.metrics import MetricsReporter, Page, labels_of, start_reporting
from octavo_triton.server_wide_lock import ServerWideLock

WAIT_S = 10
LABELS = {"model": "m", "version": "1"}
TTFT = "vllm:time_to_first_token_seconds"


class Engine:
    """Gives stats; what is observed between two readings is up to the test. The page stands at the second one."""

    def __init__(self) -> None:
        self.recorder = Recorder(1024)
        self.scalars: dict[str, Any] = {}
        self.num_readings = 0
        self.was_read_twice = threading.Event()

    def stats(self) -> EngineStats:
        self.num_readings += 1
        if self.num_readings == 2:
            self.was_read_twice.set()
        return EngineStats(histograms=self.recorder.snapshot(), **self.scalars)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def lock_refused(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a reporter has found the lock taken."""
    refused = threading.Event()
    acquire = ServerWideLock.acquire

    def watched(lock: ServerWideLock) -> bool:
        acquired = acquire(lock)
        if not acquired:
            refused.set()
        return acquired

    monkeypatch.setattr(ServerWideLock, "acquire", watched)
    return refused


@pytest.fixture
def page(engine: Engine, metric_families: list[Any]) -> Iterator[Page]:
    page = Page()
    page.create(engine.stats(), LABELS)
    yield page
    page.clear()


def values(families: list[Any], name: str, **labels: str) -> list[float]:
    """What one line of the page was told."""
    (found,) = [
        metric
        for family in families
        for metric in family.metrics
        if family.name == name and metric.labels == LABELS | labels
    ]
    return list(found.values)


def in_buckets(values: list[float], bounds: tuple[float, ...]) -> list[int]:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return counts


def test_every_row_of_the_table_is_on_the_page(page: Page, metric_families: list[Any]) -> None:
    assert [(family.name, family.kind) for family in metric_families] == [(m.name, m.kind.value) for m in METRICS]
    assert all(metric.labels.items() >= LABELS.items() for family in metric_families for metric in family.metrics)


def test_gauges_are_set_when_they_change(engine: Engine, page: Page, metric_families: list[Any]) -> None:
    for running in (3, 3, 0):
        engine.scalars = {"num_requests_running": running, "num_blocks": 10, "num_free_blocks": 4, "block_size": 16}
        assert page.report(engine.stats())
    assert values(metric_families, "vllm:num_requests_running") == [3, 0]
    assert values(metric_families, "vllm:gpu_cache_usage_perc") == [0.6]
    blocks = "nv_trt_llm_kv_cache_block_metrics"
    shown = {t: values(metric_families, blocks, kv_cache_block_type=t) for t in ("tokens_per", "used", "max")}
    assert shown == {"tokens_per": [16], "used": [6], "max": [10]}


def test_counters_are_told_by_how_much_they_grew(engine: Engine, page: Page, metric_families: list[Any]) -> None:
    for tokens, ends in [(5, {"stop": 1}), (5, {"stop": 1}), (12, {"stop": 1, "deadline": 2, "cancelled": 1})]:
        engine.scalars = {"generation_tokens_total": tokens, "finished_total": ends}
        page.report(engine.stats())
    assert values(metric_families, "vllm:generation_tokens_total") == [5, 7]
    success = {r: values(metric_families, "vllm:request_success_total", finished_reason=r) for r in ("stop", "abort")}
    assert success == {"stop": [1], "abort": [3]}
    assert values(metric_families, "octavo:request_finished_total", finished_reason="deadline") == [2]


def test_a_histogram_gets_the_exact_count_and_sum_in_each_bucket(
    engine: Engine, page: Page, metric_families: list[Any]
) -> None:
    observed = [0.1, 0.1, 0.1, 0.007, 0.009, 3.0, 700.0, 0.0]
    engine.recorder.observe(Observations(time_to_first_token_s=observed[:5]))
    page.report(engine.stats())
    engine.recorder.observe(Observations(time_to_first_token_s=observed[5:]))
    page.report(engine.stats())
    page.report(engine.stats())
    told = values(metric_families, TTFT)
    (metric,) = [metric for metric in METRICS if metric.name == TTFT]
    bounds = metric.read(engine.stats()).bounds
    assert in_buckets(told, bounds) == in_buckets(observed, bounds)
    assert sum(told) == pytest.approx(sum(observed))


def test_what_the_budget_leaves_over_is_told_later_and_nobody_is_starved(
    engine: Engine, page: Page, metric_families: list[Any]
) -> None:
    gaps = [0.004] * 50 + [0.012] * 50
    engine.recorder.observe(Observations(time_per_output_token_s=gaps, e2e_s=[0.5]))
    names = ("vllm:time_per_output_token_seconds", "octavo:time_per_output_token_seconds")
    counts = []
    while not page.report(engine.stats(), budget=30):
        assert len(counts) < 20
        counts.append([len(values(metric_families, name)) for name in names])
    assert max(abs(coarse - fine) for coarse, fine in counts) <= 30
    for name in names:
        assert len(values(metric_families, name)) == 100
        assert sum(values(metric_families, name)) == pytest.approx(sum(gaps))
    assert len(values(metric_families, "vllm:e2e_request_latency_seconds")) == 1


def test_a_budget_that_is_too_small_is_shared_by_fast_and_slow(
    engine: Engine, page: Page, metric_families: list[Any]
) -> None:
    engine.recorder.observe(Observations(time_per_output_token_s=[0.004] * 900 + [0.012] * 99 + [2.0]))
    page.report(engine.stats(), budget=100)
    told = values(metric_families, "vllm:time_per_output_token_seconds")
    assert [round(value, 9) for value in told] == [2.0] + [0.012] * 10 + [0.004] * 89


def test_a_server_without_histograms_gets_the_rest(
    engine: Engine, metric_families: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules["triton_python_backend_utils"].MetricFamily, "HISTOGRAM")
    page = Page()
    page.create(engine.stats(), LABELS)
    assert page.report(engine.stats())
    assert {family.kind for family in metric_families} == {"counter", "gauge"}
    assert caplog.messages == ["this Triton server knows no histograms: times are not reported"]
    page.clear()


def test_metrics_that_the_server_has_switched_off_are_one_line_in_the_log(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = sys.modules["triton_python_backend_utils"]

    def refuse(**arguments: Any) -> None:
        raise utils.TritonModelException("metrics are disabled")

    monkeypatch.setattr(utils.MetricFamily, "__init__", lambda self, **arguments: refuse())
    MetricsReporter(engine.stats, LABELS).close()
    assert [record.message for record in caplog.records] == ["[vllm] Metrics not supported (metrics are disabled)"]


def test_only_the_reporters_thread_touches_metrics_and_they_end_with_it(
    engine: Engine, metric_families: list[Any]
) -> None:
    engine.recorder.observe(Observations(time_per_output_token_s=[0.1]))
    engine.scalars = {"num_requests_running": 1, "steps_total": 1}
    reporter = MetricsReporter(engine.stats, LABELS)
    assert engine.was_read_twice.wait(WAIT_S)
    assert metric_families[-1].reported.wait(WAIT_S)
    metrics = [metric for family in metric_families for metric in family.metrics]
    assert all(len(metric.threads) == 1 and threading.get_ident() not in metric.threads for metric in metrics)
    kept = [weakref.ref(metric) for metric in metrics]
    for family in metric_families:
        family.metrics.clear()
    del metrics
    reporter.close()
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


def test_a_second_reporter_with_the_same_labels_waits_for_the_end_of_the_first_and_loses_nothing(
    engine: Engine, metric_families: list[Any], lock_refused: threading.Event
) -> None:
    first = MetricsReporter(engine.stats, LABELS)
    assert engine.was_read_twice.wait(WAIT_S)
    reloaded = Engine()
    reloaded.scalars = {"steps_total": 7}
    second = MetricsReporter(reloaded.stats, LABELS)
    assert lock_refused.wait(WAIT_S)
    assert len(metric_families) == len(METRICS)
    first.close()
    assert reloaded.was_read_twice.wait(WAIT_S)
    assert len(metric_families) == 2 * len(METRICS)
    second.close()
    assert values(metric_families[len(METRICS) :], "octavo:steps_total") == [7]


def test_other_labels_need_not_wait(engine: Engine, metric_families: list[Any], lock_refused: threading.Event) -> None:
    engines = engine, Engine()
    reporters = [MetricsReporter(one.stats, LABELS | {"instance": f"m_0_{i}"}) for i, one in enumerate(engines)]
    assert all(one.was_read_twice.wait(WAIT_S) for one in engines)
    for reporter in reporters:
        reporter.close()
    assert not lock_refused.is_set()


def test_closing_ends_the_wait_for_another_reporter_at_once(
    engine: Engine, metric_families: list[Any], lock_refused: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_triton.metrics.REPORT_INTERVAL_S", 10 * WAIT_S)
    first = MetricsReporter(engine.stats, LABELS)
    assert engine.was_read_twice.wait(WAIT_S)
    second = MetricsReporter(engine.stats, LABELS)
    assert lock_refused.wait(WAIT_S)
    closing = threading.Thread(target=second.close, daemon=True)
    closing.start()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    first.close()
    assert len(metric_families) == len(METRICS)


@pytest.mark.parametrize("fails_at", ["", TTFT])
def test_the_lock_is_let_go_after_every_metric_and_family(
    engine: Engine, fails_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[weakref.ref[Any]] = []
    left: list[list[Any]] = []

    class Families:
        def append(self, family: Any) -> None:
            kept.append(weakref.ref(family))
            if family.name == fails_at:
                raise RuntimeError("refused halfway")

    def release(lock: ServerWideLock) -> None:
        # The stand-in's families and metrics know each other.
        gc.collect()
        left.append([ref() for ref in kept if ref() is not None])
        release_really(lock)

    release_really = ServerWideLock.release
    monkeypatch.setattr(ServerWideLock, "release", release)
    # A kept log record would keep the frames in which the failure happened, and what they hold.
    monkeypatch.setattr("octavo_triton.metrics.logger.exception", lambda text: None)
    monkeypatch.setattr(sys.modules["triton_python_backend_utils"].MetricFamily, "created", Families())
    MetricsReporter(engine.stats, LABELS).close()
    assert kept
    assert left == [[]]


def test_a_system_without_the_lock_has_no_metrics_and_says_so(
    engine: Engine, metric_families: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: ServerWideLock) -> bool:
        raise PermissionError("no such sockets here")

    monkeypatch.setattr(ServerWideLock, "acquire", refuse)
    MetricsReporter(engine.stats, LABELS).close()
    assert not metric_families
    assert caplog.messages == ["metrics are not reported"]


@pytest.mark.parametrize("value", ["false", "off", "0"])
def test_a_server_started_without_metrics_gets_no_reporter_but_a_line_in_the_log(
    engine: Engine, value: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_triton.metrics.server_option", {"--allow-metrics": value}.get)
    assert start_reporting(engine.stats, LABELS) is None
    assert caplog.messages == ["[vllm] Metrics not supported (the server was started with --allow-metrics=false)"]


@pytest.mark.parametrize("value", ["true", None])
def test_a_server_with_metrics_gets_a_reporter(
    engine: Engine, metric_families: list[Any], value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_triton.metrics.server_option", {"--allow-metrics": value}.get)
    reporter = start_reporting(engine.stats, LABELS)
    assert reporter is not None
    reporter.close()
    assert metric_families


@pytest.mark.parametrize(
    ("groups", "several"),
    [
        ([], False),
        ([{"kind": "KIND_MODEL", "count": 1, "gpus": []}], False),
        ([{"kind": "KIND_CPU", "count": 2}], True),
        ([{"kind": "KIND_CPU"}, {"kind": "KIND_MODEL"}], True),
        ([{"kind": "KIND_GPU", "count": 1, "gpus": [0]}], False),
        ([{"kind": "KIND_GPU", "count": 1, "gpus": [0, 1]}], True),
        ([{"kind": "KIND_GPU", "count": 2, "gpus": []}], True),
    ],
)
def test_lines_are_labelled_by_instance_where_there_are_several(groups: list[dict[str, Any]], several: bool) -> None:
    args = {"model_name": "m", "model_version": "1", "model_instance_name": "m_0_1"}
    expected = LABELS | {"instance": "m_0_1"} if several else LABELS
    assert labels_of(args, {"instance_group": groups}) == expected


def test_closing_reports_what_is_left(engine: Engine, metric_families: list[Any]) -> None:
    reporter = MetricsReporter(engine.stats, LABELS)
    assert engine.was_read_twice.wait(WAIT_S)
    engine.recorder.observe(Observations(time_per_output_token_s=[0.02] * 5000))
    reporter.close()
    assert len(values(metric_families, "octavo:time_per_output_token_seconds")) == 5000


def test_a_round_that_left_something_over_is_followed_by_a_rest_of_four_times_its_length(
    engine: Engine, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.02, 1.0, 2.0])
    waits: list[float] = []

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return len(waits) == 2

    monkeypatch.setattr("octavo_triton.metrics.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("octavo_triton.metrics.LAST_ROUNDS_S", 0)
    reporter = MetricsReporter.__new__(MetricsReporter)
    reporter._stats, reporter._closing = engine.stats, Closing()
    engine.recorder.observe(Observations(time_per_output_token_s=[0.02] * 5000))
    reporter._report_until_closed(page)
    assert waits == [0, pytest.approx(0.08)]


def test_stats_that_break_end_the_reporting_and_nothing_else(
    metric_families: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def stats() -> EngineStats:
        raise RuntimeError("engine gone")

    MetricsReporter(stats, {}).close()
    assert not metric_families
    assert "metrics are no longer reported" in caplog.text
