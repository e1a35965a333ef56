"""Responses and their events: which there are, in which order, and that put together they are the whole response."""

from __future__ import annotations

from typing import Any

import pytest
from host_kserve.test_openai_messages import CALL, CUT_TEXTS, TEXT, settings
from host_kserve.test_openai_responses import PIECES, PLAIN, STREAMING, output, part, request
from hypothesis import given
from jsonschema import Draft202012Validator
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

import octavo
from octavo import FinishReason, Usage
from octavo_kserve.responses.request import ResponseRequest
from octavo_kserve.responses.schemas import RESPONSE_SCHEMAS
from octavo_kserve.responses.writer import ResponseWriter

REPEATED: dict[str, Any] = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 0.5}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


def writer(**asked: Any) -> ResponseWriter:
    return ResponseWriter(ResponseRequest(request(**{"message": settings()} | asked), REPEATED))


def whole(text: str, end: FinishReason = FinishReason.STOP, **asked: Any) -> dict[str, Any]:
    response = writer(**asked).whole([output(part(text, end=end))])
    Draft202012Validator(RESPONSE_SCHEMAS["Response"]).validate(response)
    Response.model_validate(response, strict=True)
    return response


def streamed(pieces: list[str], end: FinishReason = FinishReason.STOP, **asked: Any) -> list[dict[str, Any]]:
    one = writer(streaming=STREAMING, **asked)
    events = [event for piece in pieces for event in one.chunks(0, output(part(piece)))]
    events += one.chunks(0, output(part("", end=end))) + one.last_chunks()
    for event in events:
        Draft202012Validator(RESPONSE_SCHEMAS["ResponseEvent"]).validate(event)
        EVENT.validate_python(event, strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types of the events, of deltas that follow each other one."""
    found = [event["type"].removeprefix("response.") for event in events]
    return [kind for i, kind in enumerate(found) if i == 0 or kind != found[i - 1] or not kind.endswith("delta")]


def put_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output items, made of the deltas alone."""
    items: list[dict[str, Any]] = []
    for event in events:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(items)
                items.append(event["item"])
            case "content_part.added":
                items[event["output_index"]]["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                items[event["output_index"]]["content"][event["content_index"]]["text"] += event["delta"]
            case "function_call_arguments.delta":
                items[event["output_index"]]["arguments"] += event["delta"]
    return without_ids(items)


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in item.items() if name not in ("id", "call_id", "status")} for item in items]


def test_a_response_has_an_item_for_each_block_of_the_answer() -> None:
    response = whole(TEXT)
    reasoning, message, *calls = response["output"]
    assert (reasoning["type"], reasoning["content"][0]["text"]) == ("reasoning", "Hm.")
    assert (message["type"], message["role"], message["content"][0]["text"]) == ("message", "assistant", "Let me see.")
    assert [(call["type"], call["name"], call["arguments"]) for call in calls] == [
        ("function_call", "look", '{"at": "é"}')
    ] * 2
    assert len({item["id"] for item in response["output"]}) == 4 and calls[0]["call_id"] != calls[1]["call_id"]
    assert {item["status"] for item in response["output"]} == {response["status"]} == {"completed"}
    assert response["store"] is False and REPEATED.items() <= response.items()


def test_tokens_are_counted() -> None:
    usage = whole("Well.")["usage"]
    assert usage == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5,
    }


def test_reasoning_has_its_share_of_the_tokens() -> None:
    for reasoning, said in (("Hm.", "Well."), ("Hm.", ""), ("", "Well.")):
        text = f"<think>{reasoning}</think>{said}"
        one_each = output(part(text, end=FinishReason.STOP), usage=Usage(3, len(reasoning + said), 0))
        usage = writer().whole([one_each])["usage"]
        assert usage["output_tokens_details"]["reasoning_tokens"] == len(reasoning)
    usage = whole(TEXT)["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] <= usage["output_tokens"]


def test_the_events_of_a_message_come_in_the_protocols_order() -> None:
    events = streamed(["Let ", "me ", "see."])
    assert kinds(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    assert events[-1]["response"]["output"][0] == events[-2]["item"]
    assert len({event["item_id"] for event in events if "item_id" in event} | {events[-2]["item"]["id"]}) == 1


def test_the_events_of_reasoning_and_of_calls_come_one_item_behind_the_other() -> None:
    assert kinds(streamed([f"<think>Hm.</think>{CALL}"]))[2:-1] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done", "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
    ]  # fmt: skip


@given(pieces=CUT_TEXTS)
def test_deltas_put_together_are_the_whole_response(pieces: list[str]) -> None:
    events = streamed(pieces)
    expected = without_ids(whole("".join(pieces))["output"])
    assert put_together(events) == expected == without_ids(events[-1]["response"]["output"])
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


@pytest.mark.parametrize("text", ["Well", f"{CALL}<tool_call>"])
def test_what_was_cut_off_is_incomplete_and_so_is_its_last_item(text: str) -> None:
    response, events = whole(text, FinishReason.LENGTH), streamed([text], FinishReason.LENGTH)
    for each in (response, events[-1]["response"]):
        assert (each["status"], each["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert [item["status"] for item in each["output"]][-1] == "incomplete"
    assert kinds(events)[-1] == "incomplete"


def test_a_call_that_the_model_did_not_end_is_incomplete_in_an_answer_that_is_complete() -> None:
    text = CALL + CALL[: CALL.index("é")]
    response, events = whole(text), streamed([text])
    for each in (response, events[-1]["response"]):
        assert each["status"] == "completed"
        assert [item["status"] for item in each["output"]] == ["completed", "incomplete"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


def test_an_answer_of_nothing_is_a_response_without_items() -> None:
    assert whole("")["output"] == []
    assert kinds(streamed([""])) == ["created", "in_progress", "completed"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (octavo.EngineDead("gone"), "server_error"),
        (octavo.DeadlineExceeded(), "server_error"),
        (KeyError("/secret"), "server_error"),
    ],
)
def test_a_failure_in_mid_stream_is_the_last_event(error: Exception, code: str) -> None:
    one = writer(streaming=STREAMING)
    one.chunks(0, output(part("Well")))
    (event,) = one.failure(error)
    EVENT.validate_python(event, strict=True)
    Draft202012Validator(RESPONSE_SCHEMAS["ResponseEvent"]).validate(event)
    assert (event["type"], event["response"]["status"]) == ("response.failed", "failed")
    assert event["response"]["error"]["code"] == code and "secret" not in event["response"]["error"]["message"]
    assert [item["status"] for item in event["response"]["output"]] == ["incomplete"]


def test_logprobs_stand_with_their_text_and_streamed_they_are_the_same() -> None:
    asked: dict[str, Any] = {"message": PLAIN, "num_top_logprobs": 1, "logprobs": 1}
    response = writer(**asked).whole([output(part("bad", end=FinishReason.STOP, logprobs=PIECES))])
    (message,) = response["output"]
    found = message["content"][0]["logprobs"]
    assert [token["token"] for token in found] == ["b", "a", "d"]
    assert all(len(token["top_logprobs"]) == 1 and isinstance(token["bytes"], list) for token in found)
    one = writer(streaming=STREAMING, **asked)
    events = one.chunks(0, output(part("", logprobs=PIECES[:1])))
    events += one.chunks(0, output(part("b", logprobs=PIECES[1:2])))
    events += one.chunks(0, output(part("ad", end=FinishReason.STOP, logprobs=PIECES[2:]), usage=Usage(3, 3, 0)))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [logprob for event in deltas for logprob in event["logprobs"]] == found
    assert one.last_chunks()[0]["response"]["output"][0]["content"] == message["content"]
