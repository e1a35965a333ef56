"""Histograms, the table of metrics, and what is observed of a request's life."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from octavo import METRICS, EngineStats, FinishReason, Histogram, HistogramMetric, Metric, RequestCancelled, Timing
from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.live_request import LiveRequest
from octavo.metrics import recorded_bounds
from octavo.outputs import EngineOutput, RequestOutput, Usage
from octavo.recorder import GrowingHistogram, Recorder
from octavo.request import EngineRequest
from octavo.request_stream import RequestStream
from octavo.sampling_params import SamplingParams
from octavo.startup_clock import StartupClock
from octavo.stats import Histograms, Observations
from octavo.testing import FakeModelRunner, make_fake_model
from octavo.text.tokenizer import Tokenizer, open_tokenizer

HISTOGRAMS = [metric for metric in METRICS if isinstance(metric, HistogramMetric)]
PROMPT = [1, 2, 3]


def test_a_value_on_a_bound_belongs_to_the_bucket_below() -> None:
    growing = GrowingHistogram((1.0, 2.0))
    growing.observe([0.0, 1.0, 1.5, 2.0, 9.0, 10.0])
    found = growing.snapshot()
    assert (found.counts, found.sums) == ((2, 2, 2), (1.0, 3.5, 19.0))
    assert (found.count, found.sum) == (6, 23.5)


def test_joined_buckets_are_those_that_coarser_bounds_had_given() -> None:
    values = [0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 9.0, 100.0]
    fine, coarse = GrowingHistogram((1.0, 2.0, 3.0, 5.0)), GrowingHistogram((2.0, 5.0))
    fine.observe(values)
    coarse.observe(values)
    assert fine.snapshot().coarsened((2.0, 5.0)) == coarse.snapshot()
    assert fine.snapshot().coarsened(()) == Histogram((), (9,), (sum(values),))
    with pytest.raises(AssertionError, match="joined, not split"):
        coarse.snapshot().coarsened((3.0,))


class Watched:
    """Stats that remember which of their fields were read; a property counts as the fields it reads."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self._stats = EngineStats(histograms=Recorder(1024).snapshot())

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        found = getattr(type(self._stats), name)
        return found.fget(self) if isinstance(found, property) else getattr(self._stats, name)


def test_every_statistic_is_a_row_of_the_table() -> None:
    watched: Any = Watched()
    for metric in METRICS:
        for read in metric.read.values() if isinstance(metric, Metric) else [metric.read]:
            read(watched)
    assert watched.read >= {field.name for field in fields(EngineStats)}
    assert {metric.source for metric in HISTOGRAMS} == {field.name for field in fields(Histograms)}
    assert [field.name for field in fields(Observations)] == [field.name for field in fields(Histograms)]


def test_names_are_unique_and_counters_end_in_total() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)


def test_every_histogram_can_be_read_in_its_own_buckets() -> None:
    recorder = Recorder(3000)
    recorder.observe(Observations(time_to_first_token_s=[0.03], num_prompt_tokens=[3000.0]))
    stats = EngineStats(histograms=recorder.snapshot())
    for metric in HISTOGRAMS:
        bounds = metric.read(stats).bounds
        assert all(low < high for low, high in pairwise(bounds))
        assert metric.bounds is None or metric.bounds == bounds
    shown = {metric.name: metric.read(stats) for metric in HISTOGRAMS}
    ttft = shown["vllm:time_to_first_token_seconds"]
    assert ttft.counts[bisect_left(ttft.bounds, 0.04)] == 1
    assert shown["vllm:request_prompt_tokens"].counts[-1] == 1


@pytest.mark.parametrize(("context", "last"), [(1, [1]), (9, [2, 5]), (10, [5, 10]), (131_072, [50_000, 100_000])])
def test_token_counts_have_a_1_2_5_series_up_to_the_context(context: int, last: list[float]) -> None:
    bounds = recorded_bounds("num_prompt_tokens", context)
    assert list(bounds[-2:]) == last
    assert bounds[:1] == (1,)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(open_checkpoint(str(make_fake_model(tmp_path_factory.mktemp("model")))))


@pytest.fixture
def start(tokenizer: Tokenizer) -> Callable[..., LiveRequest]:
    """A request that arrives at second 10."""

    def build(n: int = 1, stop: list[str] | None = None) -> LiveRequest:
        params = SamplingParams(n=n, max_tokens=50, stop=stop or [])
        request = EngineRequest(request_id="r", prompt_token_ids=PROMPT, params=params, seed=1)
        return LiveRequest(tokenizer, request, None, RequestStream("r", lambda: None), arrived_at=10.0)

    return build


def tokens(*token_ids: int, index: int = 0, scheduled_at: float | None = None, end: bool = False) -> EngineOutput:
    reason = FinishReason.LENGTH if end else None
    return EngineOutput(
        request_id="r", index=index, token_ids=list(token_ids), scheduled_at=scheduled_at, finish_reason=reason
    )


def test_a_request_is_timed_from_its_arrival_to_its_end(start: Callable[..., LiveRequest]) -> None:
    live, seen = start(), Observations()
    live.push(tokens(65, scheduled_at=11.0), 13.0, seen)
    first = live.take_fresh()
    assert first is not None
    assert first.timing == Timing(queue_s=1.0, prefill_s=2.0, time_to_first_token_s=3.0)
    assert (seen.queue_s, seen.prefill_s, seen.time_to_first_token_s) == ([1.0], [2.0], [3.0])
    assert (seen.num_prompt_tokens, seen.params_n, seen.e2e_s) == ([3], [1], [])
    live.push(tokens(66), 13.5, seen)
    live.push(tokens(67, end=True), 14.75, seen)
    last = live.take_fresh()
    assert last is not None
    assert last.timing == Timing(queue_s=1.0, prefill_s=2.0, decode_s=1.75, time_to_first_token_s=3.0, e2e_s=4.75)
    assert (seen.time_per_output_token_s, seen.decode_s, seen.e2e_s) == ([0.5, 1.25], [1.75], [4.75])
    assert (seen.time_to_first_token_s, seen.num_generation_tokens) == ([3.0], [3])


def test_tokens_that_come_at_once_share_the_gap(start: Callable[..., LiveRequest]) -> None:
    live, seen = start(), Observations()
    live.push(tokens(65, 66, scheduled_at=10.0), 11.0, seen)
    live.push(tokens(67, 68, 69, 70), 13.0, seen)
    assert seen.time_per_output_token_s == [0.0, 0.5, 0.5, 0.5, 0.5]


def test_completions_have_gaps_of_their_own_and_one_first_token(start: Callable[..., LiveRequest]) -> None:
    live, seen = start(n=2), Observations()
    live.push(tokens(65, index=1, scheduled_at=10.0), 11.0, seen)
    live.push(tokens(66, index=0, scheduled_at=10.0), 12.0, seen)
    live.push(tokens(67, index=1, end=True), 13.0, seen)
    assert (seen.num_generation_tokens, seen.e2e_s) == ([2], [])
    live.push(tokens(68, index=0, end=True), 15.0, seen)
    assert seen.time_to_first_token_s == [1.0]
    assert seen.time_per_output_token_s == [2.0, 3.0]
    assert (seen.num_generation_tokens, seen.params_n, seen.num_prompt_tokens) == ([2, 2], [2], [3])
    assert (seen.decode_s, seen.e2e_s) == ([4.0], [5.0])


def test_what_ends_without_a_token_is_in_no_histogram(start: Callable[..., LiveRequest]) -> None:
    live, seen = start(n=2), Observations()
    live.fail(99.0, seen)
    assert seen == Observations()
    assert live.times.timing is None


def test_what_fails_after_a_token_has_an_end_once(start: Callable[..., LiveRequest]) -> None:
    live, seen = start(n=2), Observations()
    live.push(tokens(65, 66, scheduled_at=10.0, end=True), 11.0, seen)
    live.fail(14.0, seen)
    live.fail(15.0, seen)
    assert (seen.e2e_s, seen.decode_s, seen.num_generation_tokens) == ([4.0], [0.0], [2])


def test_a_replayed_request_keeps_what_was_known(start: Callable[..., LiveRequest]) -> None:
    live, seen = start(n=2), Observations()
    live.push(tokens(65, scheduled_at=11.0), 12.0, seen)
    assert live.replay().emitted_token_ids == [[65], []]
    live.push(tokens(66), 20.0, seen)
    live.push(tokens(67, index=1, scheduled_at=19.0), 20.0, seen)
    assert live.times.timing == Timing(queue_s=1.0, prefill_s=1.0, time_to_first_token_s=2.0)
    assert (seen.queue_s, seen.time_to_first_token_s) == ([1.0], [2.0])
    assert seen.time_per_output_token_s == [8.0]


def test_a_merged_output_has_the_later_timing() -> None:
    def output(timing: Timing | None) -> RequestOutput:
        return RequestOutput(
            request_id="r", prompt=None, prompt_token_ids=[], outputs=[], usage=Usage(0, 0, 0), timing=timing
        )

    early, late = Timing(queue_s=1.0), Timing(queue_s=1.0, e2e_s=2.0)
    merged = output(None)
    for timing in (early, late, None):
        merged.extend(output(timing))
    assert merged.timing == late


def test_the_engine_tells_with_first_tokens_when_the_request_was_first_scheduled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("octavo.engine.time.monotonic", lambda: now)
    model = make_fake_model(tmp_path / "model")
    config = EngineConfig(
        model=str(model), block_size=4, max_model_len=64, max_num_seqs=1, max_num_batched_tokens=8, executor="none:none"
    )
    engine = Engine(config, FakeModelRunner(64, 4))
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    for name, prompt in (("first", list(range(20))), ("second", [7])):
        engine.add_request(EngineRequest(request_id=name, prompt_token_ids=prompt, params=params, seed=1))
    told = []
    while engine.has_work:
        told += [(output.request_id, output.scheduled_at) for output in engine.step()]
        now += 1
    # Three steps of 8 tokens for the first prompt, one for its second token; there is one place.
    assert told == [("first", 100.0), ("first", None), ("second", 104.0), ("second", None)]


@pytest.mark.slow
def test_a_crash_changes_no_count_and_the_readers_get_their_timing(
    start_engine: Callable[..., Any], watch: Any
) -> None:
    engine = start_engine()
    stream = engine.submit([1] * 40, SamplingParams(max_tokens=3000, ignore_eos=True, seed=1))
    early = next(stream)
    watch(engine.engine_pid).kill()
    outputs = [early, *stream]
    assert engine.stats().engine_restarts_total == 1
    histograms = engine.stats().histograms
    assert histograms.time_to_first_token_s.count == histograms.queue_s.count == histograms.e2e_s.count == 1
    assert histograms.time_per_output_token_s.count == 3000 - 1
    assert (histograms.num_generation_tokens.sum, histograms.num_prompt_tokens.sum) == (3000, 40)
    timing = outputs[-1].timing
    assert timing.time_to_first_token_s == early.timing.time_to_first_token_s
    assert timing.queue_s + timing.prefill_s == pytest.approx(timing.time_to_first_token_s)
    assert timing.time_to_first_token_s + timing.decode_s <= timing.e2e_s + 1e-6
    assert histograms.e2e_s.sum == timing.e2e_s


@pytest.mark.slow
def test_a_request_that_is_cancelled_before_its_first_token_leaves_the_times_alone(
    start_engine: Callable[..., Any],
) -> None:
    engine = start_engine(max_num_seqs=1)
    running = engine.submit([1], SamplingParams(max_tokens=100_000, ignore_eos=True))
    next(running)
    waiting = engine.submit([2], SamplingParams(max_tokens=5))
    waiting.cancel()
    with pytest.raises(RequestCancelled):
        list(waiting)
    assert engine.stats().finished_total == {"cancelled": 1}
    assert engine.stats().histograms.time_to_first_token_s.count == 1
    assert engine.stats().histograms.e2e_s.count == 0
    running.cancel()
    with pytest.raises(RequestCancelled):
        list(running)
    histograms = engine.stats().histograms
    assert histograms.e2e_s.count == 1
    assert histograms.time_per_output_token_s.count == histograms.num_generation_tokens.sum - 1


def test_phases_of_start_up_last_until_the_next_one() -> None:
    now, told = 100.0, []
    clock = StartupClock(lambda phase, fraction: told.append((phase, fraction)), now=lambda: now)
    for phase, fraction, after_s in (("a", 0.0, 1.0), ("a", 1.0, 2.0), ("b", 0.5, 4.0), ("a", 0.0, 8.0)):
        clock(phase, fraction)
        now += after_s
    assert clock.finish() == {"a": 11.0, "b": 4.0}
    now += 100
    assert clock.finish() == {"a": 11.0, "b": 4.0}
    assert told == [("a", 0.0), ("a", 1.0), ("b", 0.5), ("a", 0.0)]
    assert StartupClock(None).finish() == {}


@pytest.mark.slow
def test_an_engine_that_has_had_no_request_knows_its_kv_cache_and_its_start(start_engine: Callable[..., Any]) -> None:
    stats = start_engine(num_gpu_blocks_override=100).stats()
    assert list(stats.startup_s) == ["import", "loading weights"]
    assert 0 < sum(stats.startup_s.values()) < 60
    assert (stats.num_blocks, stats.num_free_blocks, stats.block_size) == (99, 99, 16)
    assert stats.kv_cache_usage == 0
