"""The sender: FINAL exactly once, nothing after it, and one broken request never touches another."""

from __future__ import annotations

import functools
import gc
import math
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from octavo import (
    CompletionOutput,
    DeadlineExceeded,
    FinishReason,
    InvalidRequest,
    RequestCancelled,
    RequestOutput,
    RequestStream,
    SamplingParams,
    Usage,
)
from octavo.v2.request_codec import GenerateRequest
from octavo_triton.sender import POLL_SLICE, Sender, poll_pause_s

WAIT_S = 10


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.close()


def request(stream: bool = True, n: int = 1) -> GenerateRequest:
    return GenerateRequest(
        request_id="r1",
        prompt="p:",
        params=SamplingParams(n=n),
        stream=stream,
        echo="" if stream else "p:",
        priority=0,
        cache_salt="",
        deadline_s=None,
        outputs=frozenset({"text_output"}),
        logprobs_asked=False,
    )


class Source:
    """The engine's end of a stream; a cancel ends it, as the engine does."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.stream = RequestStream("r1", self._cancel)

    def _cancel(self) -> None:
        self.cancelled.set()
        self.stream.put(None, ended=True, error=RequestCancelled())

    def say(self, text: str, finished: bool = False) -> None:
        reason = FinishReason.LENGTH if finished else None
        output = RequestOutput(
            request_id="r1",
            prompt=None,
            prompt_token_ids=[],
            outputs=[CompletionOutput(index=0, text=text, finish_reason=reason)],
            usage=Usage(1, 1, 0),
            finished=finished,
        )
        self.stream.put(output, ended=finished)


def test_the_last_text_carries_final(sender: Sender, response_sender: Any) -> None:
    source = Source()
    sender.add(response_sender, request(), source.stream)
    source.say("a")
    response_sender.wait_for(1)
    source.say("b", finished=True)
    assert response_sender.final.wait(WAIT_S)
    assert response_sender.texts == ["a", "b"]


def test_what_waits_is_sent_as_one_response(sender: Sender, response_sender: Any) -> None:
    source = Source()
    for text in "abc":
        source.say(text)
    sender.add(response_sender, request(), source.stream)
    response_sender.wait_for(1)
    assert response_sender.texts == ["abc"]


def test_without_streaming_there_is_exactly_one_response(sender: Sender, response_sender: Any) -> None:
    source = Source()
    sender.add(response_sender, request(stream=False), source.stream)
    for text in "abc":
        source.say(text)
    source.say("d", finished=True)
    assert response_sender.final.wait(WAIT_S)
    assert response_sender.texts == ["p:abcd"]


def test_a_delta_without_text_is_held_back_until_there_is_news(sender: Sender, response_sender: Any) -> None:
    source = Source()
    sender.add(response_sender, request(), source.stream)
    source.say("")
    source.say("x")
    source.say("", finished=True)
    assert response_sender.final.wait(WAIT_S)
    assert "".join(response_sender.texts) == "x"
    assert "" not in response_sender.texts[:-1]


def test_a_refused_request_gets_its_error_and_final(sender: Sender, response_sender: Any) -> None:
    sender.refuse(response_sender, InvalidRequest("top_k", -2, "-1 or more"))
    assert response_sender.final.wait(WAIT_S)
    assert response_sender.error.message.startswith("Error generating stream: top_k: -2")


def test_an_error_comes_after_the_text_before_it(sender: Sender, response_sender: Any) -> None:
    source = Source()
    sender.add(response_sender, request(), source.stream)
    source.say("a")
    source.stream.put(None, ended=True, error=DeadlineExceeded())
    assert response_sender.final.wait(WAIT_S)
    assert response_sender.texts == ["a"]
    assert response_sender.error.message == "Request timeout expired"


def test_a_client_that_went_away_cancels_its_request_and_is_told_once(sender: Sender, response_sender: Any) -> None:
    source = Source()
    response_sender.cancelled = True
    sender.add(response_sender, request(), source.stream)
    assert source.cancelled.wait(WAIT_S)
    assert response_sender.final.wait(WAIT_S)
    assert [r.error.message for r in response_sender.responses] == ["Request was cancelled"]


def test_cancellation_is_noticed_while_others_keep_the_sender_busy(
    sender: Sender, make_response_sender: type[Any]
) -> None:
    busy, gone = Source(), Source()
    sender.add(make_response_sender(), request(), busy.stream)
    other = make_response_sender()
    other.cancelled = True
    stop = threading.Event()

    def talk() -> None:
        while not stop.is_set():
            busy.say("x")

    talker = threading.Thread(target=talk)
    talker.start()
    sender.add(other, request(), gone.stream)
    assert gone.cancelled.wait(WAIT_S)
    stop.set()
    talker.join()


@pytest.mark.parametrize(
    ("num_requests", "num_cores", "longest_s"),
    [(0, 1, 0.1), (1, 1, 0.1), (33, 1, 0.1), (70, 1, 0.1), (140, 2, 0.1), (1000, 16, 0.1), (1000, 2, 0.75)],
)
def test_everybody_is_polled_once_in_a_period_that_grows_slowly(
    num_requests: int, num_cores: int, longest_s: float
) -> None:
    num_slices = math.ceil(num_requests / POLL_SLICE)
    assert num_slices * poll_pause_s(num_requests, num_cores, step_s=0) <= longest_s


@pytest.mark.parametrize("num_requests", [1, 64, 300, 1000, 10_000])
def test_polling_takes_a_small_part_of_the_machine(num_requests: int) -> None:
    num_slices = math.ceil(num_requests / POLL_SLICE)
    polls_per_s = num_requests / (num_slices * poll_pause_s(num_requests, 2, step_s=0))
    assert polls_per_s * 70e-6 < 0.051 * 2


@pytest.mark.parametrize(("step_s", "period_s"), [(0.004, 0.08), (0.11, 0.11), (3.0, 0.2)])
def test_an_engine_with_long_steps_is_asked_once_a_step_and_never_too_rarely(step_s: float, period_s: float) -> None:
    assert 2 * poll_pause_s(64, 2, step_s) == pytest.approx(period_s)


def test_each_slice_of_polls_goes_on_where_the_last_one_ended(sender: Sender, make_response_sender: type[Any]) -> None:
    num_requests = 2 * POLL_SLICE + 5
    polled: list[int] = []
    enough = threading.Event()

    def record(number: int) -> bool:
        polled.append(number)
        if len(polled) == 4 * num_requests:
            enough.set()
        return False

    for number in range(num_requests):
        each = make_response_sender()
        each.is_cancelled = functools.partial(record, number)
        sender.add(each, request(), Source().stream)
    assert enough.wait(WAIT_S)
    # By the end all had arrived long ago.
    assert sorted(polled[-num_requests:]) == list(range(num_requests))


def test_nothing_is_polled_or_sent_after_final(sender: Sender, make_response_sender: type[Any]) -> None:
    done, alive = make_response_sender(), make_response_sender()
    source, other = Source(), Source()
    sender.add(done, request(), source.stream)
    sender.add(alive, request(), other.stream)
    source.say("a", finished=True)
    assert done.final.wait(WAIT_S)
    alive.polled.clear()
    assert alive.polled.wait(WAIT_S)
    assert done.crashes == 0


def test_a_reply_that_has_ended_is_not_kept(sender: Sender, make_response_sender: type[Any]) -> None:
    done, later = make_response_sender(), make_response_sender()
    source, other = Source(), Source()
    sender.add(done, request(), source.stream)
    source.say("a", finished=True)
    assert done.final.wait(WAIT_S)
    kept = weakref.ref(done)
    del done, source
    # Once it has served another one, the sender's thread holds nothing of the first on its stack either.
    sender.add(later, request(), other.stream)
    other.say("b", finished=True)
    assert later.final.wait(WAIT_S)
    gc.collect()
    assert kept() is None


def test_a_response_that_cannot_be_sent_ends_its_request_only(sender: Sender, make_response_sender: type[Any]) -> None:
    broken, healthy = make_response_sender(), make_response_sender()
    source, other = Source(), Source()
    broken.fail_with = RuntimeError("shared memory is full")
    sender.add(broken, request(), source.stream)
    sender.add(healthy, request(), other.stream)
    source.say("a")
    assert broken.final.wait(WAIT_S)
    assert source.cancelled.is_set()
    assert "internal error" in broken.error.message
    other.say("b", finished=True)
    assert healthy.final.wait(WAIT_S)
    assert healthy.texts == ["b"]


def test_a_final_response_that_cannot_be_sent_is_not_tried_again(
    sender: Sender, make_response_sender: type[Any]
) -> None:
    broken, healthy = make_response_sender(), make_response_sender()
    source, other = Source(), Source()
    broken.fail_with = RuntimeError("closed")
    sender.add(broken, request(), source.stream)
    source.say("a", finished=True)
    sender.add(healthy, request(), other.stream)
    other.say("b", finished=True)
    assert healthy.final.wait(WAIT_S)
    assert broken.responses == []


def test_closing_sends_what_is_there_and_ends_the_rest(make_response_sender: type[Any]) -> None:
    sender = Sender()
    done, open_ended = make_response_sender(), make_response_sender()
    source, other = Source(), Source()
    sender.add(done, request(), source.stream)
    sender.add(open_ended, request(), other.stream)
    source.say("a", finished=True)
    sender.close()
    assert done.texts == ["a"]
    assert open_ended.final.is_set()
    assert "unloaded" in open_ended.error.message


def test_an_error_that_cannot_be_told_still_gets_final_and_the_others_go_on(
    sender: Sender, make_response_sender: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise UnicodeEncodeError("utf-8", "", 0, 1, "surrogates not allowed")

    untold, healthy = make_response_sender(), make_response_sender()
    pb_utils = sys.modules["triton_python_backend_utils"]
    with monkeypatch.context() as patch:
        patch.setattr(pb_utils.TritonError, "__init__", broken)
        sender.refuse(untold, DeadlineExceeded())
        assert untold.final.wait(WAIT_S)
    source = Source()
    sender.add(healthy, request(), source.stream)
    source.say("b", finished=True)
    assert healthy.final.wait(WAIT_S)
    assert healthy.texts == ["b"]
