"""The reader's end of a request: merging, waiting, ends, errors, in threads and in event loops."""

from __future__ import annotations

import asyncio
import threading

import pytest

from octavo.errors import DeadlineExceeded, RequestCancelled
from octavo.outputs import CompletionOutput, RequestOutput, Usage
from octavo.request_stream import RequestStream


def output(text: str, finished: bool = False) -> RequestOutput:
    return RequestOutput(
        request_id="r",
        prompt=None,
        prompt_token_ids=[1],
        outputs=[CompletionOutput(index=0, text=text, token_ids=list(text.encode()))],
        usage=Usage(1, len(text), 0),
        finished=finished,
    )


def text(out: RequestOutput | None) -> str:
    assert out is not None
    return out.outputs[0].text


@pytest.fixture
def stream() -> RequestStream:
    return RequestStream("r", cancel=lambda: None)


def test_a_slow_reader_gets_everything_in_one_output(stream: RequestStream) -> None:
    stream.put(output("a"))
    stream.put(output("b"))
    stream.put(output("c", finished=True), ended=True)
    outs = list(stream)
    assert [text(out) for out in outs] == ["abc"]
    assert outs[0].finished and outs[0].outputs[0].token_ids == list(b"abc")


def test_a_fast_reader_gets_every_output(stream: RequestStream) -> None:
    for letter in "ab":
        stream.put(output(letter))
        assert text(stream.take()) == letter


def test_taking_nothing_times_out(stream: RequestStream) -> None:
    with pytest.raises(TimeoutError):
        stream.take(0)


def test_an_ended_stream_gives_none_for_ever(stream: RequestStream) -> None:
    stream.put(output("a", finished=True), ended=True)
    assert text(stream.take()) == "a"
    assert stream.take() is None
    assert stream.take() is None
    assert list(stream) == []


def test_an_error_comes_once_and_after_what_came_before(stream: RequestStream) -> None:
    stream.put(output("a"))
    stream.put(None, ended=True, error=DeadlineExceeded())
    assert text(stream.take()) == "a"
    with pytest.raises(DeadlineExceeded):
        stream.take()
    assert stream.take() is None


def test_nothing_may_follow_an_end(stream: RequestStream) -> None:
    stream.put(None, ended=True, error=RequestCancelled())
    with pytest.raises(AssertionError):
        stream.put(output("late"))


def test_a_waiting_thread_is_woken(stream: RequestStream) -> None:
    read: list[str] = []
    thread = threading.Thread(target=lambda: read.extend(text(out) for out in stream))
    thread.start()
    stream.put(output("a", finished=True), ended=True)
    thread.join(10)
    assert read == ["a"]


def test_cancel_reaches_the_engine_only_while_the_stream_lives() -> None:
    cancelled: list[bool] = []
    stream = RequestStream("r", cancel=lambda: cancelled.append(True))
    stream.cancel()
    stream.put(None, ended=True, error=RequestCancelled())
    stream.cancel()
    assert cancelled == [True]


def test_notify_is_called_at_once_when_something_is_there(stream: RequestStream) -> None:
    told: list[RequestStream] = []
    stream.put(output("a"))
    stream.notify(told.append)
    assert told == [stream]


def test_notify_is_called_once_for_what_is_taken_at_once(stream: RequestStream) -> None:
    told: list[RequestStream] = []
    stream.notify(told.append)
    stream.put(output("a"))
    stream.put(output("b"))
    assert len(told) == 1
    assert text(stream.take(0)) == "ab"
    stream.put(output("c", finished=True), ended=True)
    assert len(told) == 2


def test_notify_also_announces_an_error_that_stands_behind_an_output(stream: RequestStream) -> None:
    told: list[RequestStream] = []
    stream.notify(told.append)
    stream.put(output("a"))
    stream.put(None, ended=True, error=RequestCancelled())
    assert len(told) == 1
    stream.take(0)
    assert len(told) == 2
    with pytest.raises(RequestCancelled):
        stream.take(0)
    assert len(told) == 2


def test_a_broken_callback_does_not_break_the_stream(stream: RequestStream) -> None:
    stream.notify(lambda _: 1 / 0)
    stream.put(output("a"))
    assert text(stream.take(0)) == "a"


async def collect(stream: RequestStream) -> list[str]:
    return [text(out) async for out in stream]


def test_async_iteration_is_woken_from_another_thread(stream: RequestStream) -> None:
    async def run() -> list[str]:
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0)  # the reader is waiting now
        threading.Thread(target=lambda: stream.put(output("a", finished=True), ended=True)).start()
        return await asyncio.wait_for(reader, 10)

    assert asyncio.run(run()) == ["a"]


def test_async_iteration_can_go_on_in_another_loop(stream: RequestStream) -> None:
    async def first() -> str:
        return text(await anext(stream))

    stream.put(output("a"))
    assert asyncio.run(first()) == "a"
    stream.put(output("b", finished=True), ended=True)
    assert asyncio.run(collect(stream)) == ["b"]


def test_async_iteration_raises_what_ended_the_request(stream: RequestStream) -> None:
    stream.put(output("a"))
    stream.put(None, ended=True, error=DeadlineExceeded())
    with pytest.raises(DeadlineExceeded):
        asyncio.run(collect(stream))


def test_an_abandoned_async_reader_does_not_disturb(stream: RequestStream) -> None:
    async def give_up() -> None:
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        stream.put(output("a"))

    asyncio.run(give_up())
    stream.put(output("b"))
    assert text(stream.take(0)) == "ab"
