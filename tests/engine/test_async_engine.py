"""AsyncEngine over a real engine process with the fake executor: streams, ends, refusals, shutdown."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from octavo.async_engine import AsyncEngine
from octavo.config import EngineConfig
from octavo.errors import (
    DeadlineExceeded,
    EngineDead,
    InvalidRequest,
    ModelLoadError,
    Overloaded,
    PromptTooLong,
    RequestCancelled,
)
from octavo.outputs import FinishReason, RequestOutput
from octavo.request_stream import RequestStream
from octavo.sampling_params import SamplingParams

Expected = Callable[..., str]
Start = Callable[..., AsyncEngine]

ENDLESS = SamplingParams(max_tokens=None, seed=1)


def whole(outs: Iterable[RequestOutput]) -> RequestOutput:
    """All outputs of a stream as one."""
    first, *later = outs
    for out in later:
        first.extend(out)
    return first


def submit_until_refused(engine: AsyncEngine) -> None:
    while True:
        engine.submit("more", SamplingParams(max_tokens=1)).cancel()


def generate(engine: AsyncEngine, prompt: str = "hello", **params: Any) -> RequestOutput:
    return whole(engine.submit(prompt, SamplingParams(**{"seed": 1} | params)))


def test_a_stream_brings_the_whole_text(shared_engine: AsyncEngine, expected_text: Expected) -> None:
    out = generate(shared_engine, "hello", max_tokens=20)
    (completion,) = out.outputs
    assert completion.text == expected_text("hello", 1, 20)
    assert completion.token_ids == list(completion.text.encode())
    assert completion.finish_reason is FinishReason.LENGTH
    assert (out.usage.num_prompt_tokens, out.usage.num_output_tokens) == (5, 20)
    assert out.finished and out.prompt == "hello" and out.prompt_token_ids == list(b"hello")


def test_a_stream_can_be_read_asynchronously(shared_engine: AsyncEngine, expected_text: Expected) -> None:
    async def read(prompt: str) -> str:
        stream = shared_engine.submit(prompt, SamplingParams(max_tokens=30, seed=2))
        return whole([out async for out in stream]).outputs[0].text

    async def run() -> list[str]:
        return await asyncio.gather(*(read(f"prompt {i}") for i in range(8)))

    assert asyncio.run(run()) == [expected_text(f"prompt {i}", 2, 30) for i in range(8)]


def test_a_reader_that_comes_late_gets_everything_at_once(shared_engine: AsyncEngine, expected_text: Expected) -> None:
    ended = threading.Event()
    stream = shared_engine.submit("late", SamplingParams(max_tokens=40, seed=3))
    done = shared_engine.submit("after", SamplingParams(max_tokens=200, seed=3))
    done.notify(lambda _: ended.set())
    for _ in done:
        pass
    outs = list(stream)
    assert len(outs) == 1
    assert outs[0].outputs[0].text == expected_text("late", 3, 40)


def test_notify_drives_a_single_sender_thread(shared_engine: AsyncEngine, expected_text: Expected) -> None:
    told: queue.Queue[RequestStream] = queue.Queue()
    streams = [shared_engine.submit(f"p{i}", SamplingParams(max_tokens=25, seed=i)) for i in range(4)]
    for stream in streams:
        stream.notify(told.put)
    texts = {stream.request_id: "" for stream in streams}
    num_ended = 0
    while num_ended < len(streams):
        stream = told.get(timeout=10)
        out = stream.take(0)
        assert out is not None
        texts[stream.request_id] += out.outputs[0].text
        num_ended += out.finished
    assert list(texts.values()) == [expected_text(f"p{i}", i, 25) for i in range(4)]


def test_children_have_texts_of_their_own_and_end_together(shared_engine: AsyncEngine, expected_text: Expected) -> None:
    out = generate(shared_engine, "many", n=3, max_tokens=12)
    assert [c.index for c in out.outputs] == [0, 1, 2]
    assert [c.text for c in out.outputs] == [expected_text("many", 1, 12, index) for index in range(3)]
    assert out.usage.num_output_tokens == 36


def test_a_cached_prefix_shows_in_the_usage(shared_engine: AsyncEngine) -> None:
    prompt = "a prompt that is longer than one block of sixteen tokens"
    generate(shared_engine, prompt, max_tokens=2)
    assert generate(shared_engine, prompt, max_tokens=2).usage.num_cached_tokens == 48


def test_a_stop_string_that_spans_steps_ends_the_text_before_it(
    shared_engine: AsyncEngine, expected_text: Expected
) -> None:
    text = expected_text("stop here", 1, 40)
    stop = text[20:24]
    out = generate(shared_engine, "stop here", max_tokens=None, stop=stop)
    (completion,) = out.outputs
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason is FinishReason.STOP
    assert completion.stop_reason == stop
    assert out.usage.num_output_tokens == len(completion.token_ids) == text.index(stop) + len(stop)
    generate(shared_engine, max_tokens=1)
    assert shared_engine.stats().num_requests_running == 0


def test_a_stop_string_ends_only_its_own_child(shared_engine: AsyncEngine, expected_text: Expected) -> None:
    texts = [expected_text("two", 1, 60, index) for index in range(2)]
    stop = texts[0][10:15]
    assert stop not in texts[1]
    out = generate(shared_engine, "two", n=2, max_tokens=60, stop=stop)
    assert [c.finish_reason for c in out.outputs] == [FinishReason.STOP, FinishReason.LENGTH]
    assert [c.text for c in out.outputs] == [texts[0][:10], texts[1]]


def test_a_stop_token_counts_and_is_shown_unless_it_is_special(
    shared_engine: AsyncEngine, expected_text: Expected
) -> None:
    text = expected_text("token", 1, 30)
    stop_token = ord(text[7])
    (completion,) = generate(shared_engine, "token", max_tokens=30, stop_token_ids=[stop_token]).outputs
    end = text.index(text[7]) + 1
    assert completion.token_ids == list(text[:end].encode())
    assert completion.text == text[:end]
    assert (completion.finish_reason, completion.stop_reason) == (FinishReason.STOP, stop_token)


def test_logprobs_come_with_the_texts_of_their_tokens(shared_engine: AsyncEngine) -> None:
    out = generate(shared_engine, "log", max_tokens=9, logprobs=0, prompt_logprobs=0)
    (completion,) = out.outputs
    assert completion.logprobs is not None and len(completion.logprobs) == 9
    chosen = [p[t] for p, t in zip(completion.logprobs, completion.token_ids, strict=True)]
    assert "".join(logprob.decoded_token for logprob in chosen) == completion.text
    assert completion.cumulative_logprob == 0
    assert out.prompt_logprobs is not None and out.prompt_logprobs[0] is None
    assert [p[t].decoded_token for p, t in zip(out.prompt_logprobs[1:], b"og", strict=True) if p] == ["o", "g"]


def test_without_logprobs_there_are_none(shared_engine: AsyncEngine) -> None:
    (completion,) = generate(shared_engine).outputs
    assert completion.logprobs is None and completion.cumulative_logprob is None


def test_an_unseeded_request_draws_a_seed(shared_engine: AsyncEngine) -> None:
    texts = {generate(shared_engine, "seedless", seed=None).outputs[0].text for _ in range(3)}
    assert len(texts) == 3


def test_cancelling_a_running_request_ends_its_stream_and_frees_its_blocks(shared_engine: AsyncEngine) -> None:
    stream = shared_engine.submit("run", ENDLESS)
    assert stream.take(10) is not None
    stream.cancel()
    with pytest.raises(RequestCancelled):
        for _ in stream:
            pass
    assert stream.take() is None
    generate(shared_engine)
    stats = shared_engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.num_requests_running == stats.num_requests_waiting == 0
    stream.cancel()


def test_an_id_can_be_used_again_as_soon_as_its_stream_ended(
    shared_engine: AsyncEngine, expected_text: Expected
) -> None:
    for _ in range(20):
        stream = shared_engine.submit("first", ENDLESS, request_id="again")
        stream.take(10)
        stream.cancel()
        with pytest.raises(RequestCancelled):
            list(stream)
        second = shared_engine.submit("second", SamplingParams(max_tokens=5, seed=4), request_id="again")
        assert whole(second).outputs[0].text == expected_text("second", 4, 5)


def test_a_live_id_is_refused(shared_engine: AsyncEngine) -> None:
    stream = shared_engine.submit("one", ENDLESS, request_id="same")
    with pytest.raises(InvalidRequest, match="request_id"):
        shared_engine.submit("two", ENDLESS, request_id="same")
    stream.cancel()
    with pytest.raises(RequestCancelled):
        list(stream)


def test_a_deadline_ends_a_running_request_after_what_it_brought(shared_engine: AsyncEngine) -> None:
    stream = shared_engine.submit("slow", ENDLESS, deadline_s=0.1)
    outs: list[RequestOutput] = []
    with pytest.raises(DeadlineExceeded):
        outs.extend(stream)
    assert outs


@pytest.mark.parametrize(
    ("name", "value"),
    [("request_id", ""), ("request_id", "\ud800"), ("deadline_s", 0), ("deadline_s", float("nan")), ("priority", "x")],
)
def test_bad_arguments_are_refused_by_name(shared_engine: AsyncEngine, name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        shared_engine.submit("a", SamplingParams(), **{name: value})  # type: ignore[arg-type]
    assert caught.value.parameter == name


def test_ends_are_counted_once_each(shared_engine: AsyncEngine) -> None:
    before = shared_engine.stats().finished_total
    generate(shared_engine, n=2, max_tokens=3)
    stream = shared_engine.submit("x", ENDLESS)
    stream.cancel()
    with pytest.raises(RequestCancelled):
        list(stream)
    after = shared_engine.stats().finished_total
    assert {r: after[r] - before.get(r, 0) for r in after if after[r] != before.get(r, 0)} == {
        "length": 2,
        "cancelled": 1,
    }


@pytest.mark.slow
def test_a_request_that_the_kv_cache_can_never_hold_is_refused_with_both_numbers(start_engine: Start) -> None:
    engine = start_engine(num_gpu_blocks_override=5)
    with pytest.raises(PromptTooLong, match=r"100 tokens.*65 tokens"):
        list(engine.submit("x" * 100, SamplingParams(max_tokens=1)))
    assert generate(engine).finished


@pytest.mark.slow
def test_a_full_queue_sheds_with_a_time_to_retry(start_engine: Start) -> None:
    engine = start_engine(max_num_seqs=2, max_waiting=1)
    streams = [engine.submit("x", ENDLESS) for _ in range(3)]
    with pytest.raises(Overloaded, match="1 requests are waiting, at most 1") as caught:
        engine.submit("x", ENDLESS)
    assert caught.value.retry_after_s >= 1
    assert engine.stats().num_requests_waiting >= 1
    streams[0].cancel()
    with pytest.raises(RequestCancelled):
        list(streams[0])
    engine.submit("x", ENDLESS)


@pytest.mark.slow
def test_queued_requests_can_be_cancelled_and_run_out_of_time(start_engine: Start) -> None:
    engine = start_engine(max_num_seqs=1)
    running = engine.submit("run", ENDLESS)
    assert running.take(10) is not None
    queued, late = engine.submit("queue", ENDLESS), engine.submit("late", ENDLESS, deadline_s=0.05)
    with pytest.raises(DeadlineExceeded):
        list(late)
    queued.cancel()
    with pytest.raises(RequestCancelled):
        list(queued)
    assert running.take(10) is not None


@pytest.mark.slow
def test_what_is_submitted_while_loading_runs_when_it_is_loaded(start_engine: Start, expected_text: Expected) -> None:
    engine = start_engine(wait=False)
    streams = [engine.submit(f"early {i}", SamplingParams(max_tokens=5, seed=i)) for i in range(3)]
    cancelled = engine.submit("never", ENDLESS)
    cancelled.cancel()
    with pytest.raises(RequestCancelled):
        list(cancelled)
    texts = [whole(stream).outputs[0].text for stream in streams]
    assert texts == [expected_text(f"early {i}", i, 5) for i in range(3)]
    assert engine.is_ready()


@pytest.mark.slow
def test_shutdown_lets_streams_end_and_takes_no_more(start_engine: Start, expected_text: Expected) -> None:
    engine = start_engine()
    stream = engine.submit("drain", SamplingParams(max_tokens=2000, seed=5))
    assert stream.take(10) is not None
    shutdown = threading.Thread(target=engine.shutdown)
    shutdown.start()
    with pytest.raises(EngineDead):
        submit_until_refused(engine)
    assert not engine.is_ready()
    assert whole(stream).finished
    shutdown.join(10)
    assert not shutdown.is_alive()


@pytest.mark.slow
def test_shutdown_cancels_what_is_left_and_ends_the_process(start_engine: Start, watch: Callable[[int], Any]) -> None:
    engine = start_engine()
    assert engine.engine_pid is not None
    child = watch(engine.engine_pid)
    streams = [engine.submit("endless", ENDLESS) for _ in range(3)]
    engine.shutdown(drain_s=0.01)
    for stream in streams:
        with pytest.raises(RequestCancelled, match="shutting down"):
            list(stream)
    assert child.ended(1)
    engine.shutdown()
    with pytest.raises(EngineDead):
        engine.submit("late", ENDLESS)
    with pytest.raises(EngineDead):
        engine.wait_ready()


@pytest.mark.slow
def test_a_forgotten_engine_ends_its_process_but_not_before_its_streams(
    long_model: Path, watch: Callable[[int], Any], expected_text: Expected
) -> None:
    config = EngineConfig(model=str(long_model), executor="octavo.testing:create_fake_executor")
    engine = AsyncEngine(config)
    engine.wait_ready(60)
    assert engine.engine_pid is not None
    child = watch(engine.engine_pid)
    stream = engine.submit("alone", SamplingParams(max_tokens=500, seed=6))
    del engine
    gc.collect()
    assert whole(stream).outputs[0].text == expected_text("alone", 6, 500)
    del stream
    gc.collect()
    assert child.ended(10)


def test_a_model_that_is_not_there_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such model"):
        AsyncEngine(EngineConfig(model=str(tmp_path / "nothing")))
