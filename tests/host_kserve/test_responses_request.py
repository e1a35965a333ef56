"""Bodies of the Responses API to requests for the engine: the chat that is meant, and what is refused by which name."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from host_kserve.test_openai_requests import fields_of, models

import octavo
from octavo.text.reasoning import THINK
from octavo.text.tool_formats import HERMES
from octavo_kserve.errors import Unprocessable
from octavo_kserve.responses.request import LOGPROBS, REFUSED, ResponseRequest, read_response

CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": '{"at": "x"}'}
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
NESTED: Any = json.loads("[" * 300 + "]" * 300)


def response(chat_format: octavo.ChatFormat | None = None, **body: Any) -> ResponseRequest:
    return read_response(fields_of(**{"model": "m", "input": "hello"} | body), models("m", chat_format=chat_format))


def prompt(**body: Any) -> octavo.ChatPrompt:
    (found,) = response(**body).generate.prompts
    assert isinstance(found, octavo.ChatPrompt)
    return found


def refusal(**body: Any) -> octavo.InvalidRequest:
    with pytest.raises(octavo.InvalidRequest) as caught:
        response(**body)
    assert str(caught.value).startswith(caught.value.parameter)
    return caught.value


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("hello", [{"role": "user", "content": "hello"}]),
        ([{"role": "user", "content": "hello"}], [{"role": "user", "content": "hello"}]),
        (
            [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}],
            [{"role": "system", "content": "Be brief."}],
        ),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
            [{"role": "assistant", "content": "No."}],
        ),
        (
            [{"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "8"}]}],
            [{"role": "tool", "tool_call_id": "c1", "content": "8"}],
        ),
    ],
)
def test_items_are_messages(asked: Any, expected: list[dict[str, Any]]) -> None:
    assert prompt(input=asked).messages == expected


def test_an_answers_items_sent_back_are_one_turn_of_the_assistant() -> None:
    said = [
        {"role": "user", "content": "hello"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Well.", "annotations": []}],
        },
        CALL,
        CALL | {"call_id": "c2", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "8"},
        {"type": "function_call_output", "call_id": "c2", "output": "9"},
    ]
    called = [("c1", '{"at": "x"}'), ("c2", "")]
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "look", "arguments": given}}
        for call_id, given in called
    ]
    assert prompt(input=said).messages == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "reasoning_content": "Hm.", "content": "Well.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "8"},
        {"role": "tool", "tool_call_id": "c2", "content": "9"},
    ]


def test_what_the_assistant_says_or_thinks_is_one_turn_until_another_speaks() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    spoken = {"role": "assistant", "content": "Well."}
    result = {"type": "function_call_output", "call_id": "c1", "output": "8"}
    turns = {
        "call, text": ([CALL, spoken, result], [["content", "tool_calls"], ["content", "tool_call_id"]]),
        "call, thought": ([CALL, thought], [["content", "reasoning_content", "tool_calls"]]),
        "text, thought": ([spoken, thought], [["content", "reasoning_content"]]),
        "thought, text, call": ([thought, spoken, CALL], [["content", "reasoning_content", "tool_calls"]]),
        "call, result, text": (
            [CALL, result, spoken],
            [["content", "tool_calls"], ["content", "tool_call_id"], ["content"]],
        ),
    }
    for name, (items, expected) in turns.items():
        found = [sorted(message.keys() - {"role"}) for message in prompt(input=items).messages]
        assert found == expected, name
    assert prompt(input=[CALL, spoken, result]).messages[0]["content"] == "Well."
    (turn,) = prompt(input=[spoken, thought, spoken, thought]).messages
    assert turn == {"role": "assistant", "content": "Well.\nWell.", "reasoning_content": "Hm.\nHm."}


@pytest.mark.parametrize("arguments", ['{"at": "', "[]", '{"at": "x"}'])
def test_arguments_go_to_the_template_as_the_chat_route_has_them(arguments: str) -> None:
    (turn,) = prompt(input=[CALL | {"arguments": arguments}]).messages
    assert turn["tool_calls"][0]["function"]["arguments"] == arguments


def test_the_instructions_and_system_messages_behind_them_are_one_message() -> None:
    said = [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}, {"role": "developer", "content": "d"}]
    assert prompt(instructions="a", input=said).messages == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "system", "content": "d"},
    ]


def test_a_summary_stands_in_for_reasoning_and_what_is_encrypted_for_nothing() -> None:
    said = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "reasoning", "summary": []},
    ]
    assert prompt(input=said).messages == [{"role": "assistant", "content": "", "reasoning_content": "Hm."}]


def test_tools_reach_the_template_as_the_chat_route_has_them() -> None:
    expected = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}, "strict": True}}]
    assert prompt(tools=[TOOL]).tools == expected
    assert prompt(tools=[TOOL], tool_choice="none").tools is None
    assert response(tools=[TOOL], tool_choice="required").generate.params.structured_outputs is not None
    one = response(tools=[TOOL], tool_choice={"type": "function", "name": "look"}, parallel_tool_calls=False).generate
    assert one.params.structured_outputs is not None
    assert one.message is not None and not one.message.parallel_tool_calls


def test_parameters_have_the_names_of_this_protocol() -> None:
    asked = response(max_output_tokens=7, temperature=0.5, top_p=0.9, top_k=3, seed=1, stop=["x"]).generate
    assert asked.params == octavo.SamplingParams(max_tokens=7, temperature=0.5, top_p=0.9, top_k=3, seed=1, stop=["x"])  # type: ignore[arg-type]
    assert response().generate.params == octavo.SamplingParams(max_tokens=None)
    assert prompt(reasoning={"effort": "low"}).template_kwargs == {"reasoning_effort": "low"}
    assert prompt(reasoning={"effort": "none"}).template_kwargs["enable_thinking"] is False


def test_a_format_is_a_structured_output() -> None:
    found = response(text={"format": SCHEMA, "verbosity": "low"}).generate.params.structured_outputs
    assert found is not None and found.kind == "json"
    assert response(text={"format": {"type": "text"}}).generate.params.structured_outputs is None
    found = response(text={"format": {"type": "json_object"}}).generate.params.structured_outputs
    assert found is not None and found.kind == "json_object"


def test_the_answer_repeats_what_was_asked() -> None:
    repeated = response(tools=[TOOL], instructions="a", metadata={"k": "v"}, text={"format": SCHEMA}).repeated
    assert repeated["tools"] == [{"description": None, **TOOL}] and repeated["instructions"] == "a"
    assert repeated["metadata"] == {"k": "v"} and repeated["text"] == {"format": SCHEMA}
    assert response().repeated["text"] == {"format": {"type": "text"}} and response().repeated["tool_choice"] == "auto"


def test_what_an_answer_repeats_can_be_asked_again() -> None:
    repeated = response().repeated
    pair = {name: repeated[name] for name in ("tools", "tool_choice")}
    assert pair == {"tools": [], "tool_choice": "auto"}
    assert response(**pair).repeated == repeated and prompt(**pair).tools is None


def test_what_clients_send_by_default_asks_for_nothing() -> None:
    plain = {"store": True, "background": False, "previous_response_id": None, "truncation": "disabled", "include": []}
    assert response(**plain, stream_options=None).generate.params == response().generate.params


def test_logprobs_are_those_of_plain_text() -> None:
    plain = octavo.ChatFormat(HERMES, None)
    asked = response(plain, include=[LOGPROBS], top_logprobs=2).generate
    assert (asked.num_top_logprobs, asked.params.logprobs) == (2, 2)
    assert response(plain, include=[LOGPROBS]).generate.num_top_logprobs == 0
    assert response(plain, include=["reasoning.encrypted_content"]).generate.num_top_logprobs is None
    assert refusal(chat_format=plain, include=[LOGPROBS], tools=[TOOL]).parameter == "include"
    assert refusal(chat_format=octavo.ChatFormat(None, THINK), top_logprobs=2).parameter == "include"


@pytest.mark.parametrize("name", REFUSED)
def test_what_this_server_cannot_do_or_calls_otherwise_is_refused_by_name(name: str) -> None:
    assert refusal(**{name: "x"}).parameter == name


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input[0].content[0].text"),
        ({"input": [CALL, CALL | {"arguments": {}}]}, "input[1].arguments"),
        ({"input": [CALL | {"name": None}]}, "input[0].name"),
        ({"input": [CALL, CALL | {"name": ""}]}, "input[1].name"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{}]}, "input[0].type"),
        ({"instructions": ["x"]}, "instructions"),
        ({"tools": "x"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [TOOL, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [TOOL | {"name": ""}]}, "tools[0].name"),
        ({"tools": [TOOL | {"parameters": 5}]}, "tools[0].parameters"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "required", "text": {"format": SCHEMA}}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "schema": 5}}}, "text.format.schema"),
        ({"text": "x"}, "text"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": "x"}, "include"),
        ({"include": [5]}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": 5}, "metadata"),
        ({"metadata": {"a": NESTED}}, "metadata"),
        ({"metadata": {"a": math.nan}}, "metadata"),
        ({"tools": [TOOL | {"parameters": {"maximum": math.inf}}]}, "tools"),
        ({"text": {"format": {"type": "text", "a": -math.inf}}}, "text.format"),
        ({"tools": [TOOL | {"parameters": {"a": NESTED}}]}, "tools"),
        ({"text": {"format": {"type": "text", "a": NESTED}}}, "text.format"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_as_the_client_wrote_it(body: dict[str, Any], parameter: str) -> None:
    assert refusal(**body).parameter == parameter


def test_a_choice_without_tools_has_the_status_of_the_chat_route() -> None:
    assert isinstance(refusal(tool_choice="required"), Unprocessable)
