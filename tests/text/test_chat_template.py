"""Chat templates: what they are given, what they may do, and what becomes of what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from octavo.errors import InvalidRequest
from octavo.text.chat import render_chat, render_unfinished_chat
from octavo.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]
CHATML = "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] }}{% endfor %}"
CHATS: list[list[dict[str, Any]]] = [
    HI,
    [{"role": "system", "content": "Be <brief> & 'kind'."}, *HI],
    [*HI, {"role": "assistant", "content": "Hello 😀\n"}, {"role": "user", "content": ""}],
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<a> & é", "parameters": {}}}]
HOSTILE = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__ }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages['__class__'] }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set ns = namespace() %}{{ ns.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
]


def oracle(template: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=Backend(models.BPE()), bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompted", [False, True])
def test_smollm2s_template_renders_as_in_transformers(
    smollm2: Tokenizer, chat: list[dict[str, Any]], prompted: bool
) -> None:
    assert smollm2.chat_template is not None
    expected = oracle(smollm2.chat_template).apply_chat_template(chat, tokenize=False, add_generation_prompt=prompted)
    text = render_chat(smollm2.chat_template, chat, smollm2.special_tokens, add_generation_prompt=prompted)
    assert text == expected
    assert text.endswith("<|im_start|>assistant\n") is prompted


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ tools | tojson }}{{ tools | tojson(indent=2) }}{{ eos_token }}",
        "{% for m in messages %}\n {% if m.role == 'system' %}\n{% continue %}\n {% endif %}{{ m.content }}\n"
        "{% endfor %}",
        "{% for m in messages %}{%- generation %}{{ m.content }}{%- endgeneration %}{% break %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ [ns.n, extra] }}",
        "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[0]['content'] | trim) }}{{ undefined_name }}",
        "{{ dict(a=1) | tojson }}{{ messages | map(attribute='role') | join(',') }}{{ strftime_now('%Y') }}",
    ],
)
@pytest.mark.parametrize("chat", CHATS)
def test_templates_have_what_transformers_gives_them(template: str, chat: list[dict[str, Any]]) -> None:
    expected = oracle(template).apply_chat_template(
        chat, tools=TOOLS, tokenize=False, add_generation_prompt=True, extra="<x>"
    )
    assert render_chat(template, chat, NAMES, tools=TOOLS, template_kwargs={"extra": "<x>"}) == expected


def test_parts_are_joined_for_templates_that_expect_strings() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render_chat(CHATML, [{"role": "user", "content": parts}], {}) == "<|user|>a\nb"


def test_parts_are_passed_on_to_templates_that_go_through_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
    )
    assert render_chat(template, [{"role": "user", "content": parts}, *HI], {}) == "[a][b]hi"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages: 'hi' is not allowed"),
        ([], r"messages: \[\] is not allowed; expected a list of messages"),
        (["hi"], r"messages\[0\]: 'hi' is not allowed"),
        ([{"content": "hi"}], r"messages\[0\]\.role: None is not allowed"),
        ([*HI, {"role": "user", "content": 3}], r"messages\[1\]\.content: 3 is not allowed"),
        ([{"role": "user"}], r"messages\[0\]\.content: None is not allowed"),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\]\.content\[0\]: 'a' is not allowed"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"messages\[0\]\.content\[0\]\.type: 'image_url' is not allowed",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text: None is not allowed"),
        ([{"role": "assistant", "content": [{"type": "refusal"}]}], r"content\[0\]\.refusal: None is not allowed"),
    ],
)
def test_messages_of_the_wrong_shape_are_refused_by_name(messages: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        render_chat(CHATML, messages, {})


def test_a_message_that_calls_tools_needs_no_content() -> None:
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    template = "{% for m in messages %}{{ m.content or m.tool_calls[0].function.name }}{% endfor %}"
    assert render_chat(template, [message], {}) == "f"
    assert render_chat(CHATML, [{**message, "content": None}], NAMES) == render_chat(
        CHATML, [{**message, "content": ""}], NAMES
    )


def test_an_answer_that_only_thought_or_refused_can_be_sent_back() -> None:
    for message, text in (
        ({"content": None, "reasoning_content": "Hm."}, ""),
        ({}, ""),
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
    ):
        assert render_chat(CHATML, [{"role": "assistant", **message}], {}) == f"<|assistant|>{text}"


@pytest.mark.parametrize("template", [None, ""])
def test_a_model_without_a_template_says_so(template: str | None) -> None:
    with pytest.raises(InvalidRequest, match="the model has no chat template"):
        render_chat(template, HI, {})


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_reaches_nothing(template: str) -> None:
    """It is refused, or sees an undefined value, never an object of the interpreter's."""
    try:
        text = render_chat(template, [dict(HI[0])], {})
    except InvalidRequest:
        return
    assert text == ""


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "a template that can be read"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_a_template_raises_is_the_requests_error(template: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as raised:
        render_chat(template, HI, {})
    assert raised.value.parameter == "messages"


@pytest.mark.parametrize(
    ("tools", "parameter"),
    [
        ({"type": "function"}, "tools"),
        ("look", "tools"),
        (["look"], "tools[0]"),
        ([{"type": "function"}], "tools[0]"),
        ([{"type": "retrieval", "function": {"name": "look"}}], "tools[0]"),
        ([TOOLS[0], {"type": "function", "function": {}}], "tools[1].function.name"),
        ([{"type": "function", "function": {"name": ""}}], "tools[0].function.name"),
    ],
)
def test_tools_of_the_wrong_shape_are_refused_by_name(tools: object, parameter: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render_chat("{{ tools }}", [{"role": "user", "content": "hi"}], NAMES, tools=tools)
    assert caught.value.parameter == parameter


def test_no_tools_and_an_empty_list_are_the_same_to_a_template() -> None:
    for tools in (None, []):
        assert render_chat("{{ tools is none }}", [{"role": "user", "content": "hi"}], NAMES, tools=tools) == "True"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_further_variables_cannot_replace_the_request(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"chat_template_kwargs: '{name}' is not allowed"):
        render_chat(CHATML, HI, {}, template_kwargs={name: "x"})


def test_a_templates_long_complaint_is_cut() -> None:
    with pytest.raises(InvalidRequest) as raised:
        render_chat("{{ raise_exception('x' * 100000) }}", HI, {})
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("text", ["Once upon", " spaces around ", "line\n", "", "😀"])
def test_a_message_is_continued_where_its_text_ends(smollm2: Tokenizer, text: str) -> None:
    chat = [*HI, {"role": "assistant", "content": text}]
    whole = render_chat(smollm2.chat_template, chat, smollm2.special_tokens, add_generation_prompt=False)
    prompt = render_unfinished_chat(smollm2.chat_template, chat, smollm2.special_tokens)
    assert prompt.endswith("assistant\n" + text) and whole == prompt + "<|im_end|>\n"


def test_the_last_part_of_a_message_is_continued() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render_unfinished_chat(CHATML + "<end>", [{"role": "x", "content": parts}], NAMES) == "<|x|>a\nb"


@pytest.mark.parametrize(
    ("template", "last"),
    [
        (CHATML, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}),
        (CHATML, {"role": "assistant", "content": []}),
        ("{{ messages[0].content }}", {"role": "assistant", "content": "hidden"}),
    ],
)
def test_a_message_that_has_no_end_to_go_on_from_is_refused(template: str, last: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        render_unfinished_chat(template, [*HI, last], NAMES)


QWEN_CALLS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("arguments", ['{"a": [1, "é"]}', {"a": [1, "é"]}])
def test_the_arguments_of_a_call_that_is_sent_back_reach_the_template_as_an_object(arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    chat = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert render_chat(QWEN_CALLS, chat, NAMES) == 'hi{"name": "f", "arguments": {"a": [1, "é"]}}'


@pytest.mark.parametrize("arguments", ["", " ", None, "null", "{}"])
def test_a_call_may_have_no_arguments(arguments: Any) -> None:
    chat = [*HI, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    assert render_chat(QWEN_CALLS, chat, NAMES) == 'hi{"name": "f", "arguments": {}}'


BROKEN = ['{"a": "x', "[1]", "5", "a=1", '{"a": NaN}', '{"a": ' * 2000 + "1" + "}" * 2000]


def broken_chat(arguments: str, *more: dict[str, Any]) -> list[dict[str, Any]]:
    calls = [{"function": {"name": "f", "arguments": each}} for each in (arguments, '{"b": 2}')]
    return [*HI, {"role": "assistant", "content": "", "tool_calls": calls}, *more]


@pytest.mark.parametrize("arguments", BROKEN)
def test_arguments_that_are_no_object_reach_the_template_as_the_model_wrote_them(arguments: str) -> None:
    written = "{% for c in messages[1].tool_calls %}{{ c.function.arguments }};{% endfor %}"
    assert render_chat(written, broken_chat(arguments), NAMES) == f"{arguments};{{'b': 2}};"
    quoted = "{{ messages[1].tool_calls[0].function | tojson }}"
    assert json.loads(render_chat(quoted, broken_chat(arguments), NAMES)) == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize("loop", ["arguments | items", "arguments.items()"])
@pytest.mark.parametrize("arguments", BROKEN)
def test_a_template_that_goes_through_arguments_gets_an_object_for_what_is_none(loop: str, arguments: str) -> None:
    template = (
        "{% for c in messages[1].tool_calls %}{% for name, value in c.function."
        + loop
        + " %}{{ name }}={{ value }};{% endfor %}{% endfor %}"
    )
    assert render_chat(template, broken_chat(arguments), NAMES) == f"INVALID_JSON={arguments};b=2;"


def test_what_a_template_refuses_beside_broken_arguments_is_told_as_ever() -> None:
    template = "{{ messages[1].tool_calls[0].function.arguments | items | list }}{{ raise_exception('roles') }}"
    with pytest.raises(InvalidRequest, match=r"chat template accepts: roles"):
        render_chat(template, broken_chat("{"), NAMES)


def test_what_a_template_says_of_the_messages_as_they_came_is_told() -> None:
    template = "{{ raise_exception(messages | length ~ ' messages') }}"
    history = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InvalidRequest, match=r"chat template accepts: 2 messages"):
        render_chat(template, history, {})


@pytest.mark.parametrize(
    ("calls", "where"),
    [
        ({"a": 1}, ".tool_calls"),
        (["f"], ".tool_calls[0]"),
        ([{"function": {}}], ".tool_calls[0].function.name"),
        ([{"function": {"name": "f", "arguments": [1]}}], ".tool_calls[0].function.arguments"),
        ([{"function": {"name": "f", "arguments": 5}}], ".tool_calls[0].function.arguments"),
    ],
)
def test_a_call_of_the_wrong_shape_is_refused_by_name(calls: Any, where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render_chat(QWEN_CALLS, [*HI, {"role": "assistant", "content": "", "tool_calls": calls}], NAMES)
    assert caught.value.parameter == f"messages[1]{where}"


def test_the_parameters_of_a_tool_are_a_schema() -> None:
    with pytest.raises(InvalidRequest, match=r"tools\[0\]\.function\.parameters"):
        render_chat(CHATML, HI, NAMES, tools=[{"type": "function", "function": {"name": "f", "parameters": []}}])
