"""Messages of Anthropic's protocol and their events: order, ends, counts, and that put together they are the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from host_kserve.test_openai_messages import CALL, CUT_TEXTS, TEXT, settings
from host_kserve.test_openai_responses import STREAMING, output, part, request
from hypothesis import given
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter

import octavo
from octavo import FinishReason
from octavo_kserve.anthropic.arguments import INVALID_JSON
from octavo_kserve.anthropic.schemas import ANTHROPIC_SCHEMAS
from octavo_kserve.anthropic.writer import AnthropicWriter
from octavo_kserve.replies import json_bytes

EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
SETTINGS = settings()


def whole(text: str, end: FinishReason = FinishReason.STOP, stop: int | str | None = None) -> dict[str, Any]:
    writer = AnthropicWriter(request(message=SETTINGS))
    message = writer.whole([output(part(text, end=end, stop_reason=stop))])
    Draft202012Validator(ANTHROPIC_SCHEMAS["AnthropicMessage"]).validate(message)
    Message.model_validate(message, strict=True)
    return message


def streamed(
    pieces: list[str], end: FinishReason = FinishReason.STOP, stop: int | str | None = None
) -> list[dict[str, Any]]:
    writer = AnthropicWriter(request(STREAMING, message=SETTINGS))
    events = [event for piece in pieces for event in writer.chunks(0, output(part(piece)))]
    events += writer.chunks(0, output(part("", end=end, stop_reason=stop))) + writer.last_chunks()
    for event in events:
        Draft202012Validator(ANTHROPIC_SCHEMAS["AnthropicEvent"]).validate(event)
        EVENT.validate_python(event, strict=True)
    return events


def put_together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message, as a client adds it up; a call's id is any."""
    message, texts = events[0]["message"], list[str]()
    for event in events[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"]) == len(texts)
                message["content"].append(event["content_block"])
                texts.append("")
            case "content_block_delta":
                (text,) = (value for name, value in event["delta"].items() if name != "type")
                texts[event["index"]] += text
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
    for block, text in zip(message["content"], texts, strict=True):
        match block["type"]:
            case "tool_use":
                block["input"] = json.loads(text)
            case kind:
                block[kind] = text
    return without_ids(message)


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return message | {"content": blocks}


def test_a_message_has_a_block_for_each_part_of_the_answer() -> None:
    message = whole(TEXT)
    thinking, text, *calls = message["content"]
    assert thinking == {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assert text == {"type": "text", "text": "Let me see."}
    assert [(call["name"], call["input"]) for call in calls] == [("look", {"at": "é"})] * 2
    assert len({call["id"] for call in calls}) == 2
    assert (message["id"], message["type"], message["role"], message["model"]) == ("id-1", "message", "assistant", "m")


def test_the_prompts_tokens_are_the_sum_of_three_counts() -> None:
    assert whole("x")["usage"] == {
        "input_tokens": 2,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1,
        "output_tokens": 2,
    }


def test_events_come_in_the_protocols_order() -> None:
    kinds = [event["type"] for event in streamed([f"<think>Hm.</think>Well.{CALL}"])]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds == ["message_start", *block * 3, "message_delta", "message_stop"]


@given(pieces=CUT_TEXTS)
def test_deltas_put_together_are_the_whole_message(pieces: list[str]) -> None:
    assert put_together(streamed(pieces)) == without_ids(whole("".join(pieces)))


@pytest.mark.parametrize(
    ("text", "end", "stop", "reason", "sequence"),
    [
        ("Well.", FinishReason.STOP, None, "end_turn", None),
        ("Well.", FinishReason.STOP, 7, "end_turn", None),
        ("Well", FinishReason.STOP, ".", "stop_sequence", "."),
        ("Well", FinishReason.LENGTH, None, "max_tokens", None),
        (CALL, FinishReason.STOP, None, "tool_use", None),
        (CALL, FinishReason.LENGTH, None, "max_tokens", None),
        ("", FinishReason.STOP, None, "end_turn", None),
    ],
)
def test_an_answer_says_how_it_ended(
    text: str, end: FinishReason, stop: int | str | None, reason: str, sequence: str | None
) -> None:
    message, events = whole(text, end, stop), streamed([text], end, stop)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    assert events[0]["message"]["stop_reason"] is None and events[0]["message"]["content"] == []


@pytest.mark.parametrize("end", [FinishReason.STOP, FinishReason.LENGTH])
@pytest.mark.parametrize("arguments", ["", '{"at"', '{"at": [tr', '{"at": True}', '{"at": NaN}', '{"at": 1e999}'])
def test_arguments_that_are_no_object_are_shown_as_they_are(arguments: str, end: FinishReason) -> None:
    text = '<tool_call>{"name": "look", "arguments": ' + arguments
    message = whole(text, end)
    (call,) = message["content"]
    assert call["input"] == {INVALID_JSON: arguments}
    assert put_together(streamed(list(text), end)) == without_ids(message)


def test_streamed_arguments_come_in_one_piece_when_they_are_whole() -> None:
    events = streamed(list(CALL))
    assert [event["type"] for event in events[1:4]] == [
        "content_block_start", "content_block_delta", "content_block_stop"
    ]  # fmt: skip
    assert json.loads(events[2]["delta"]["partial_json"]) == {"at": "é"}


@pytest.mark.parametrize("depth", [150, 900])
def test_arguments_are_an_object_as_deep_as_json_can_be_written(depth: int) -> None:
    arguments = '{"at": ' + "[" * depth + "]" * depth + "}"
    message = whole(f'<tool_call>{{"name": "look", "arguments": {arguments}}}</tool_call>')
    assert json.loads(json_bytes(message)) == message
    (call,) = message["content"]
    assert call["input"] == (json.loads(arguments) if depth == 150 else {INVALID_JSON: arguments})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (octavo.EngineDead("gone"), "overloaded_error"),
        (octavo.DeadlineExceeded(), "timeout_error"),
        (octavo.RequestFailed("not finite"), "api_error"),
        (KeyError("/secret"), "api_error"),
    ],
)
def test_a_failure_in_mid_stream_is_an_event_of_its_own(error: Exception, kind: str) -> None:
    (event,) = AnthropicWriter(request(STREAMING)).failure(error)
    Draft202012Validator(ANTHROPIC_SCHEMAS["AnthropicEvent"]).validate(event)
    assert event["type"] == "error" and event["error"]["type"] == kind and "secret" not in event["error"]["message"]
