"""Messages with calls of tools and with reasoning, as the OpenAI API writes them, whole and streamed."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from host_kserve.test_openai_responses import STREAMING, candidates, output, part, request
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from octavo import ChatFormat, FinishReason
from octavo.text.reasoning import THINK
from octavo.text.tool_formats import HERMES, MISTRAL, ToolFormat
from octavo_kserve.openai.answers import ANSWERS
from octavo_kserve.openai.chat_response import ChatEncoder
from octavo_kserve.openai.request import MessageSettings

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
TEXT = f"<think>\nHm.\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
AS_TEXT = '<tool_call>\n{"name": "look", "arguments": "{\\"at\\": \\"\\u00e9\\"}"}\n</tool_call>'
WITHOUT_BRACE = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}\n</tool_call>'
# Whole, broken and cut off.
TEXTS = [
    TEXT,
    *(TEXT + more for more in (WITHOUT_BRACE + CALL, AS_TEXT + AS_TEXT[:56], AS_TEXT[:38], AS_TEXT[:24], CALL[:15])),
    TEXT + CALL.replace("}}", "}, more: 1}").replace("look", "see") + '<tool_call>{"name": "now"}</tool_call>',
]


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    return [
        text[start:end] for start, end in pairwise(sorted({0, len(text), *(cut for cut in cuts if cut < len(text))}))
    ]


CUT_TEXTS = st.builds(pieces_of, st.sampled_from(TEXTS), st.lists(st.integers(0, 300)))


def settings(tools: ToolFormat | None = HERMES, **more: Any) -> MessageSettings:
    given = {"shows_reasoning": True, "parallel_tool_calls": True, **more}
    return MessageSettings(format=ChatFormat(tools, THINK), **given)


def streamed(pieces: list[str], end: FinishReason | None = FinishReason.STOP, **more: Any) -> list[dict[str, Any]]:
    """The choices of all chunks, but for the one that opens the message."""
    encoder = ChatEncoder(request(STREAMING, **{"message": settings()} | more))
    chunks = [chunk for piece in pieces for chunk in encoder.chunks(0, output(part(piece)))]
    chunks += encoder.chunks(0, output(part("", end=end)))
    for chunk in chunks:
        Draft202012Validator({"anyOf": ANSWERS["ChatChunk"]["anyOf"][:1]}).validate(chunk)
        ChatCompletionChunk.model_validate(chunk, strict=True)
    opening, *rest = [chunk["choices"][0] for chunk in chunks]
    assert opening["delta"] == {"role": "assistant", "content": ""}
    return rest


def whole(text: str, end: FinishReason = FinishReason.STOP, **more: Any) -> dict[str, Any]:
    encoder = ChatEncoder(request(**{"message": settings()} | more))
    answer = encoder.whole([output(part(text, end=end))])
    Draft202012Validator(ANSWERS["Chat"]).validate(answer)
    ChatCompletion.model_validate(answer, strict=True)
    (choice,) = answer["choices"]
    return dict(choice)


def put_together(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A message of all its deltas, as a client adds them up; a call's id is any."""
    texts = {"content": "", "reasoning_content": ""}
    calls: list[dict[str, Any]] = []
    for delta in (choice["delta"] for choice in choices):
        for name in texts:
            texts[name] += delta.get(name, "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
            else:
                calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return without_ids({name: text for name, text in texts.items() if text} | ({"tool_calls": calls} if calls else {}))


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    calls = [{name: value for name, value in call.items() if name != "id"} for call in message.get("tool_calls", ())]
    return message | ({"tool_calls": calls} if calls else {})


def test_a_whole_message_has_reasoning_content_and_calls() -> None:
    choice = whole(TEXT)
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Let me see.", "Hm.")
    assert [call["function"] for call in message["tool_calls"]] == [{"name": "look", "arguments": '{"at": "é"}'}] * 2
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"


def test_a_message_of_calls_alone_has_no_content() -> None:
    message = whole(CALL)["message"]
    assert message["content"] is None and "reasoning_content" not in message
    assert set(whole("Well.")["message"]) == {"role", "content", "refusal"}
    assert whole("")["message"]["content"] == ""


def test_a_streamed_call_begins_with_its_name_and_goes_on_with_its_arguments() -> None:
    first, *more, last = streamed([CALL[:50], CALL[50:]])
    (call,) = first["delta"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"index": 0, "type": "function", "function": {"name": "look", "arguments": ""}}
    pieces = [choice["delta"]["tool_calls"] for choice in more]
    assert len(pieces) == 2
    assert all(set(piece) == {"index", "function"} for (piece,) in pieces)
    assert "".join(piece["function"]["arguments"] for (piece,) in pieces) == '{"at": "é"}'
    assert last["delta"] == {}
    assert [choice["finish_reason"] for choice in (first, *more, last)] == [None, None, None, "tool_calls"]


@given(pieces=CUT_TEXTS)
def test_deltas_put_together_are_the_whole_message(pieces: list[str]) -> None:
    message = without_ids(whole("".join(pieces))["message"])
    assert {"role": "assistant", "refusal": None, **put_together(streamed(pieces))} == message


@pytest.mark.parametrize("end", [FinishReason.STOP, FinishReason.LENGTH])
def test_an_answer_that_calls_ends_with_that_unless_it_was_cut_off(end: FinishReason) -> None:
    expected = "tool_calls" if end is FinishReason.STOP else "length"
    assert whole(CALL, end)["finish_reason"] == streamed([CALL], end)[-1]["finish_reason"] == expected
    assert whole("Well.", end)["finish_reason"] == streamed(["Well."], end)[-1]["finish_reason"] == end.value


@pytest.mark.parametrize("end", [FinishReason.STOP, FinishReason.LENGTH])
@pytest.mark.parametrize("before", ["", CALL])
def test_an_answer_that_ends_within_a_calls_arguments_does_not_end_with_a_call(end: FinishReason, before: str) -> None:
    text = before + CALL[: CALL.index("é")]
    choice, streamed_choices = whole(text, end), streamed([text], end)
    assert choice["finish_reason"] == streamed_choices[-1]["finish_reason"] == end.value
    message = without_ids(choice["message"])
    assert message["tool_calls"][-1]["function"] == {"name": "look", "arguments": '{"at": "'}
    assert put_together(streamed_choices)["tool_calls"] == message["tool_calls"]


@pytest.mark.parametrize("before", ["", CALL])
@pytest.mark.parametrize("last", ['{"', '{"name": "look"', '"arguments": ', '{"at": "', '"{\\"at\\": \\"'])
def test_an_answer_that_a_stop_string_ends_within_a_call_ends_with_that(before: str, last: str) -> None:
    call = CALL if last != '"{\\"at\\": \\"' else CALL.replace('{"at": "', last)
    text = before + call[: call.index(last) + len(last)]
    choice, choices = whole(text), streamed(list(text))
    assert choice["finish_reason"] == choices[-1]["finish_reason"] == "stop"
    assert put_together(choices).get("tool_calls") == without_ids(choice["message"]).get("tool_calls")
    calls = choice["message"].get("tool_calls", ())
    assert len(calls) == bool(before) + (last != '{"')
    assert all(call["function"]["name"] == "look" for call in calls)


@pytest.mark.parametrize("last", ['{"', '"arguments": ', "é"])
def test_a_call_that_is_not_shown_may_end_anywhere(last: str) -> None:
    one = settings(parallel_tool_calls=False)
    assert whole(CALL + CALL[: CALL.index(last)], message=one)["finish_reason"] == "tool_calls"


def test_an_answer_that_goes_on_with_reasoning_shows_it_as_that() -> None:
    message = whole("so.</think>Yes.", message=settings(begun="<think>Well, "))["message"]
    assert (message["reasoning_content"], message["content"]) == ("so.", "Yes.")


def test_one_call_is_all_that_is_shown_where_one_is_allowed() -> None:
    one = settings(parallel_tool_calls=False)
    assert len(whole(CALL + CALL, message=one)["message"]["tool_calls"]) == 1
    assert len(put_together(streamed([CALL, CALL], message=one))["tool_calls"]) == 1


def test_reasoning_that_nobody_wants_is_left_out() -> None:
    hidden = settings(shows_reasoning=False)
    assert "reasoning_content" not in whole(TEXT, message=hidden)["message"]
    assert put_together(streamed([TEXT], message=hidden))["content"] == "Let me see."


def test_the_prompt_may_have_opened_the_reasoning() -> None:
    encoder = ChatEncoder(request(message=settings()))
    given = output(part("Hm.</think>Yes."))
    given.prompt = "<|assistant|><think>\n"
    message = encoder.whole([given])["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


def test_ids_are_as_long_as_the_models_template_wants_them() -> None:
    call = json.dumps([{"name": "look", "arguments": {}}])
    (found,) = whole(f"[TOOL_CALLS]{call}", message=settings(MISTRAL))["message"]["tool_calls"]
    assert len(found["id"]) == 9 and found["id"].isalnum()


def test_tokens_are_told_with_the_last_delta_of_their_text() -> None:
    encoder = ChatEncoder(request(STREAMING, message=settings(), num_top_logprobs=0, returns_token_ids=True))
    given = part(TEXT, token_ids=[97], logprobs=[candidates("a")])
    _, *choices = [chunk["choices"][0] for chunk in encoder.chunks(0, output(given))]
    assert [choice["token_ids"] for choice in choices] == [*[[]] * (len(choices) - 1), [97]]
    assert [choice["logprobs"] is None for choice in choices] == [*[True] * (len(choices) - 1), False]
    held = encoder.chunks(0, output(part("<tool", token_ids=[98])))
    assert [chunk["choices"][0]["delta"] for chunk in held] == [{}]


def test_each_choice_has_a_message_of_its_own() -> None:
    encoder = ChatEncoder(request(STREAMING, n=2, message=settings()))
    chunks = encoder.chunks(0, output(part(CALL, 0, FinishReason.STOP), part("No.", 1, FinishReason.STOP)))
    ends = {chunk["choices"][0]["index"]: chunk["choices"][0]["finish_reason"] for chunk in chunks}
    assert ends == {0: "tool_calls", 1: "stop"}
