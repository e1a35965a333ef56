"""Which tools a chat may or must call, read from its body, and what is looked for in its answer."""

from __future__ import annotations

from typing import Any

import pytest
from host_kserve.test_openai_requests import TOOLS, chat, models, refusal

import octavo
from octavo.text.reasoning import THINK
from octavo.text.tool_formats import HERMES
from octavo_kserve.errors import Unprocessable
from octavo_kserve.openai.chat_request import read_chat
from octavo_kserve.openai.depth import MOST_LEVELS
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import GenerateRequest

BAD_SCHEMA = {"type": "function", "function": {"name": "look", "parameters": "none"}}


def test_tools_that_must_not_be_called_are_not_shown() -> None:
    def tools(**body: Any) -> Any:
        (prompt,) = chat(**body).prompts
        assert isinstance(prompt, octavo.ChatPrompt)
        return prompt.tools

    assert tools(tools=TOOLS, tool_choice="none") is None
    assert tools(tool_choice="none") is None
    assert tools(tools=TOOLS) == tools(tools=TOOLS, tool_choice="auto") == TOOLS


def marks_of(request: GenerateRequest) -> Any:
    (prompt,) = request.prompts
    assert isinstance(prompt, octavo.ChatPrompt)
    return prompt.marks


FORCED = [
    ("required", "look", True),
    ("required", "look", False),
    ({"type": "function", "function": {"name": "look"}}, "look", True),
]


@pytest.mark.parametrize(("choice", "name", "parallel"), FORCED)
def test_a_call_that_must_be_is_made_sure_of_by_a_grammar(choice: Any, name: str, parallel: bool) -> None:
    found = chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel).params.structured_outputs
    assert found is not None and (found.kind, found.parameter) == ("grammar", "tools[0].function.parameters")
    assert name in found.text and (")*" in found.text) == (choice == "required" and parallel)
    assert chat(tools=TOOLS).params.structured_outputs is None


def test_a_model_that_calls_no_tools_cannot_be_made_to() -> None:
    with pytest.raises(octavo.InvalidRequest, match=r'^tool_choice: .* "none" or "auto"'):
        chat(octavo.ChatFormat(None, None), tools=TOOLS, tool_choice="required")
    assert chat(octavo.ChatFormat(None, None), tools=TOOLS).params.structured_outputs is None


def test_what_is_looked_for_in_an_answer() -> None:
    reasons = octavo.ChatFormat(HERMES, THINK)
    assert marks_of(chat(reasons)) == THINK.marks
    assert marks_of(chat(reasons, tools=TOOLS)) == THINK.marks | HERMES.marks
    assert marks_of(chat(reasons, tools=TOOLS, tool_choice="none")) == THINK.marks
    for body in ({"response_format": {"type": "json_object"}}, {"tools": TOOLS, "tool_choice": "required"}):
        assert not marks_of(chat(reasons, **body)) & THINK.marks


@pytest.mark.parametrize("given", [None, True])
def test_a_model_is_told_not_to_reason_where_a_grammar_leaves_no_room(given: bool | None) -> None:
    kwargs = {} if given is None else {"chat_template_kwargs": {"enable_thinking": given}}
    (prompt,) = chat(octavo.ChatFormat(HERMES, THINK), tools=TOOLS, tool_choice="required", **kwargs).prompts
    assert isinstance(prompt, octavo.ChatPrompt) and prompt.template_kwargs == {"enable_thinking": bool(given)}
    (prompt,) = chat(octavo.ChatFormat(HERMES, THINK), tools=TOOLS).prompts
    assert isinstance(prompt, octavo.ChatPrompt) and not prompt.template_kwargs


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("tool_choice", {"tools": TOOLS, "tool_choice": "always"}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function"}}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "custom", "function": {"name": "look"}}}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "unknown"}}}),
        ("tool_choice", {"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}),
        ("tools", {"tools": {"look": {}}, "tool_choice": "required"}),
        ("tools[0]", {"tools": [{"type": "custom"}], "tool_choice": "required"}),
        ("tools[0].function.parameters", {"tools": [BAD_SCHEMA], "tool_choice": "required"}),
        ("parallel_tool_calls", {"tools": TOOLS, "parallel_tool_calls": "perhaps"}),
    ],
)
def test_a_choice_that_cannot_be_is_refused_by_name(name: str, body: dict[str, Any]) -> None:
    error = refusal("chat", **body)
    assert error.parameter == name
    assert not isinstance(error, Unprocessable)


def asked_with_schema(levels: int, choice: Any) -> GenerateRequest:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    return read_chat(Fields({"messages": [{"role": "user"}], "tools": tools, "tool_choice": choice}), models("m"))


@pytest.mark.parametrize("choice", [None, "auto", *(choice for choice, _, _ in FORCED)])
def test_a_schema_nested_too_deeply_is_refused_by_name(choice: Any) -> None:
    for levels in (MOST_LEVELS, 5000):
        with pytest.raises(octavo.InvalidRequest, match=r"^tools: .* levels"):
            asked_with_schema(levels, choice)
    found = asked_with_schema(MOST_LEVELS // 2, choice).params.structured_outputs
    assert (found is not None) == (choice not in (None, "auto"))
