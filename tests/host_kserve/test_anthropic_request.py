"""Bodies of Anthropic's Messages API to requests for the engine: the chat that is meant, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from host_kserve.test_openai_requests import fields_of, models

import octavo
from octavo.text.reasoning import THINK, ReasoningFormat
from octavo.text.tool_formats import HERMES
from octavo_kserve.anthropic.arguments import INVALID_JSON
from octavo_kserve.anthropic.request import REFUSED, read_counted, read_message
from octavo_kserve.openai.request import GenerateRequest

HELLO = {"role": "user", "content": "hello"}
USE = {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "x"}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "8"}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
KEPT = {"type": "clear_thinking", "keep": "all"}
CHOICES = [
    None,
    {"type": "auto"},
    {"type": "none"},
    {"type": "any"},
    {"type": "any", "disable_parallel_tool_use": True},
    {"type": "tool", "name": "look"},
]


def message(chat_format: octavo.ChatFormat | None = None, **body: Any) -> GenerateRequest:
    asked = fields_of(**{"model": "m", "messages": [HELLO], "max_tokens": 5} | body)
    return read_message(asked, models("m", chat_format=chat_format))


def prompt(**body: Any) -> octavo.ChatPrompt:
    (found,) = message(**body).prompts
    assert isinstance(found, octavo.ChatPrompt)
    return found


def refusal(**body: Any) -> octavo.InvalidRequest:
    with pytest.raises(octavo.InvalidRequest) as caught:
        message(**body)
    assert str(caught.value).startswith(caught.value.parameter)
    return caught.value


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize("system", ["Be brief.", [text("Be brief.")]])
def test_the_system_prompt_is_the_first_message(system: Any) -> None:
    assert prompt(system=system).messages == [{"role": "system", "content": "Be brief."}, HELLO]


def test_blocks_are_messages_in_their_order() -> None:
    said = [
        {"role": "user", "content": [text("a"), text("b")]},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, text("Well."), USE],
        },
        {"role": "user", "content": [RESULT, RESULT | {"tool_use_id": "c2", "content": [text("9")]}, text("And?")]},
        {"role": "system", "content": "Be brief."},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
    assert prompt(messages=said).messages == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "Well.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "8"},
        {"role": "tool", "tool_call_id": "c2", "content": "9"},
        {"role": "user", "content": "And?"},
        {"role": "system", "content": "Be brief."},
    ]


def test_a_tool_that_failed_says_so() -> None:
    for is_error, expected in ((True, "Error: 8"), (False, "8"), (None, "8")):
        said = [HELLO, {"role": "user", "content": [RESULT | {"is_error": is_error}]}]
        assert prompt(messages=said).messages[-1]["content"] == expected


def test_what_is_said_behind_a_call_does_not_part_it_from_its_result() -> None:
    said = [HELLO, {"role": "assistant", "content": [USE, text("Well.")]}, {"role": "user", "content": [RESULT]}]
    _, turn, result = prompt(messages=said).messages
    assert (turn["content"], len(turn["tool_calls"]), result["role"]) == ("Well.", 1, "tool")


def test_what_only_its_author_can_read_is_passed_over() -> None:
    said = [HELLO, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, USE]}]
    assert "reasoning_content" not in prompt(messages=said).messages[-1]


def test_an_answer_that_has_begun_is_gone_on_with() -> None:
    begun = prompt(messages=[HELLO, {"role": "assistant", "content": "The answer is ("}])
    assert begun.continue_final_message and not begun.add_generation_prompt
    for said in ([HELLO], [HELLO, {"role": "assistant", "content": [USE]}]):
        assert not prompt(messages=said).continue_final_message and prompt(messages=said).add_generation_prompt


def test_parameters_have_the_names_of_this_protocol() -> None:
    asked = message(max_tokens=7, stop_sequences=["x"], temperature=0.5, top_p=0.9, top_k=3, seed=1)
    assert asked.params == octavo.SamplingParams(max_tokens=7, stop=["x"], temperature=0.5, top_p=0.9, top_k=3, seed=1)  # type: ignore[arg-type]
    assert message(context_management={"edits": [KEPT]}).params == message(context_management={}).params
    quiet = {"metadata": {"user_id": "1"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}
    assert message(**quiet, anthropic_version="x").params == message().params


def test_tools_reach_the_template_as_the_chat_route_has_them() -> None:
    function = {"name": "look", "parameters": {"type": "object"}, "description": "Looks."}
    assert prompt(tools=[TOOL]).tools == [{"type": "function", "function": function}]
    assert prompt(tools=[TOOL], tool_choice={"type": "none"}).tools is None
    for choice in ({"type": "any"}, {"type": "tool", "name": "look", "disable_parallel_tool_use": True}):
        assert message(tools=[TOOL], tool_choice=choice).params.structured_outputs is not None
    one = message(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True}).message
    assert one is not None and not one.parallel_tool_calls and one.format.tools is not None


@pytest.mark.parametrize(
    ("thinking", "kwargs", "shown"),
    [
        (None, {}, True),
        ({"type": "disabled"}, {"enable_thinking": False}, False),
        ({"type": "adaptive"}, {"enable_thinking": True}, True),
        ({"type": "enabled", "budget_tokens": 1024}, {"enable_thinking": True, "thinking_budget": 1024}, True),
        ({"type": "enabled", "display": "omitted"}, {"enable_thinking": True}, False),
    ],
)
def test_thinking_is_the_templates_to_switch(thinking: Any, kwargs: dict[str, Any], shown: bool) -> None:
    reasons = octavo.ChatFormat(None, THINK)
    asked = message(reasons, thinking=thinking)
    (found,) = asked.prompts
    assert isinstance(found, octavo.ChatPrompt) and found.template_kwargs == kwargs
    assert asked.message is not None and asked.message.shows_reasoning is shown


def test_a_format_is_a_structured_output_and_effort_a_variable() -> None:
    found = message(output_config={"format": SCHEMA}).params.structured_outputs
    assert found is not None and found.kind == "json"
    assert prompt(output_config={"effort": "low"}).template_kwargs == {"reasoning_effort": "low"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_this_server_cannot_do_or_calls_otherwise_is_refused_by_name(name: str) -> None:
    assert refusal(**{name: {"x": 1}}).parameter == name


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": []}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [HELLO, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [text("a"), {"type": "image"}]}]}, "messages[0].content[1].type"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [USE | {"input": "x"}]}]}, "messages[0].content[0].input"),
        ({"messages": [HELLO, HELLO, {"role": "assistant", "content": [USE, USE | {"name": ""}]}]},
         "messages[2].content[1].name"),
        ({"messages": [{"role": "user", "content": [RESULT | {"content": ["x"]}]}]},
         "messages[0].content[0].content[0]"),
        ({"messages": [{"role": "user", "content": [RESULT | {"content": [{"type": "image"}]}]}]},
         "messages[0].content[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "look"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL | {"name": 5}]}, "tools[0].name"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": 5}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "all"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"stop_sequences": 5}, "stop_sequences"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": 5}}}, "output_config.format.schema"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"context_management": {"edits": 5}}, "context_management.edits"),
        ({"context_management": {"edits": [KEPT, {"type": "clear_tool_uses"}]}}, "context_management.edits[1]"),
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_as_the_client_wrote_it(body: dict[str, Any], parameter: str) -> None:
    assert refusal(**body).parameter == parameter


@pytest.mark.parametrize("reasoning", [None, THINK])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_prompt_that_is_counted_is_the_one_that_would_be_answered(
    choice: Any, reasoning: ReasoningFormat | None
) -> None:
    chat_format = octavo.ChatFormat(HERMES, reasoning)
    body = {
        "messages": [HELLO],
        "system": "a",
        "tools": [TOOL],
        "tool_choice": choice,
        "thinking": {"type": "adaptive"},
    }
    counted = read_counted(fields_of(**body), models("m", chat_format=chat_format))
    assert counted.prompts == message(chat_format, **body).prompts


def test_arguments_that_were_no_object_come_back_as_the_model_wrote_them() -> None:
    for given, expected in (
        ({INVALID_JSON: '{"at'}, '{"at'),
        ({INVALID_JSON: "x", "at": 1}, {INVALID_JSON: "x", "at": 1}),
        ({INVALID_JSON: 5}, {INVALID_JSON: 5}),
        # None of ours: the tool has an argument of this name.
        ({INVALID_JSON: '{"at": 1}'}, {INVALID_JSON: '{"at": 1}'}),
    ):
        (turn,) = prompt(messages=[{"role": "assistant", "content": [USE | {"input": given}]}]).messages
        assert turn["tool_calls"][0]["function"]["arguments"] == expected
