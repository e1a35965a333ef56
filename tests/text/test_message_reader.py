"""A model's text to the parts of its message: calls in every format, reasoning, and what is neither."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from octavo import MessagePart, PartKind
from octavo.text.message_part import merged
from octavo.text.message_reader import MessageReader
from octavo.text.reasoning import MISTRAL_THINK, THINK, ReasoningFormat
from octavo.text.tool_formats import HERMES, LLAMA3, MISTRAL, ToolFormat


def read(
    text: str, tools: ToolFormat | None = HERMES, reasoning: ReasoningFormat | None = THINK, prompt: str = ""
) -> list[MessagePart]:
    """The whole message, from a text that comes a character at a time."""
    reader = MessageReader(tools, reasoning, prompt)
    return merged([part for character in text for part in reader.push(character)] + reader.push("", finished=True))


def content(text: str) -> MessagePart:
    return MessagePart(PartKind.CONTENT, text)


def thought(text: str) -> MessagePart:
    return MessagePart(PartKind.REASONING, text)


def call(number: int, name: str, arguments: str) -> MessagePart:
    return MessagePart(PartKind.TOOL_CALL, arguments, number, name)


ONE = '{"name": "f", "arguments": {"a": 1}}'
TWO = '{"arguments": {"b": {"c": "}]<\\"/tool_call>"}}, "name": "g"}'
ARGUMENTS = ['{"a": 1}', '{"b": {"c": "}]<\\"/tool_call>"}}']
CALLS = [call(0, "f", ARGUMENTS[0]), call(1, "g", ARGUMENTS[1])]


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        (HERMES, f"<tool_call>\n{ONE}\n</tool_call>\n<tool_call>\n{TWO}\n</tool_call>"),
        (HERMES, f"\n<tool_call>{ONE}</tool_call><tool_call>{TWO}</tool_call>\n\n"),
        (MISTRAL, f"[TOOL_CALLS][{ONE}, {TWO}]"),
        (MISTRAL, f"[TOOL_CALLS] [ {ONE}\n,{TWO} ] "),
        (MISTRAL, f"[TOOL_CALLS]f[ARGS]{ARGUMENTS[0]}[TOOL_CALLS]g[ARGS] {ARGUMENTS[1]}"),
        (MISTRAL, f"[TOOL_CALLS]f[CALL_ID]x7dK2[ARGS]{ARGUMENTS[0]}\n[TOOL_CALLS] g[CALL_ID][ARGS]{ARGUMENTS[1]}\n"),
        (MISTRAL, f"[TOOL_CALLS]f{ARGUMENTS[0]}[TOOL_CALLS]g{ARGUMENTS[1]}"),
        (LLAMA3, f"{ONE}; {TWO}".replace("arguments", "parameters")),
        (LLAMA3, f" {ONE};\n{TWO}\n"),
        (LLAMA3, f"<|python_tag|>{ONE}; {TWO}"),
    ],
)
def test_several_calls_are_read_in_every_format(tools: ToolFormat, text: str) -> None:
    assert read(text, tools) == CALLS


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        (HERMES, f"Let me see.\n\n<tool_call>\n{ONE}\n</tool_call>"),
        (MISTRAL, f"Let me see. [TOOL_CALLS] [{ONE}]"),
        (MISTRAL, f"Let me see. [TOOL_CALLS]f[ARGS]{ARGUMENTS[0]}"),
        (LLAMA3, f"Let me see.<|python_tag|>{ONE}"),
    ],
)
def test_what_is_said_before_a_call_is_content_without_the_space_between(tools: ToolFormat, text: str) -> None:
    assert read(text, tools) == [content("Let me see."), CALLS[0]]


def test_what_is_said_behind_a_call_is_content_with_it() -> None:
    assert read(f"<tool_call>{ONE}</tool_call>\n\nDone.\n") == [CALLS[0], content("\n\nDone.\n")]


@pytest.mark.parametrize("extra", ['"type": "function", ', '"id": "9aA", '])
def test_what_some_models_add_to_a_call_is_left_out(extra: str) -> None:
    assert read(f'<tool_call>{{{extra}"name": "f", "arguments": {{"a": 1}}}}</tool_call>') == CALLS[:1]


@pytest.mark.parametrize(
    "more",
    [
        '"why": "so"',
        '"x": [1, {"y": "]}"}], "z": -1.5',
        '"arguments": {}',
        '"type": 5',
        "more: 1",
        '"more" 1',
        '"x": [1}',
        "",
        '"x',
    ],
)
@pytest.mark.parametrize("tools", [HERMES, MISTRAL, LLAMA3])
def test_members_behind_what_makes_a_call_are_left_out(tools: ToolFormat, more: str) -> None:
    frame = {"hermes": "<tool_call>{}</tool_call>", "mistral": "[TOOL_CALLS][{}]", "llama3_json": "{}"}[tools.name]
    assert read(frame.replace("{}", f"{ONE[:-1]}, {more}}}"), tools) == CALLS[:1]
    assert read(frame.replace("{}", f"{TWO[:-1]}, {more} }}"), tools) == [call(0, "g", ARGUMENTS[1])]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_may_be_a_text_of_json(arguments: str) -> None:
    written = json.dumps(arguments)
    for members in (f'"name": "f", "arguments": {written}', f'"parameters": {written}, "name": "f"'):
        assert read(f"<tool_call>{{{members}}}</tool_call>") == [call(0, "f", arguments)]


@pytest.mark.parametrize("nothing", ["null", '""', '" \\n"'])
@pytest.mark.parametrize("members", ['"name": "f", "arguments": {}', '"arguments": {}, "name": "f"'])
def test_arguments_may_be_nothing(members: str, nothing: str) -> None:
    one = f"{{{members.replace('{}', nothing)}}}"
    assert read(f"<tool_call>\n{one}\n</tool_call>") == [call(0, "f", "{}")]
    assert read(f"{one}; {TWO}", LLAMA3) == [call(0, "f", "{}"), call(1, "g", ARGUMENTS[1])]
    assert read(f"[TOOL_CALLS][{one}, {one}]", MISTRAL) == [call(0, "f", "{}"), call(1, "f", "{}")]


def test_a_name_is_read_as_json() -> None:
    assert read('<tool_call>{"name": "caf\\u00e9 \\"x\\"", "arguments": {}}') == [call(0, 'café "x"', "{}")]


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        (HERMES, "The <tool_call> tag, </tool_call> and <tool"),
        (HERMES, "<tool_call>\nf(1)\n</tool_call>"),
        (HERMES, "<tool_call>\n<function=f>\n</function>\n</tool_call>"),
        (HERMES, '<tool_call>{"type": "function"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "a\nb", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "so"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": nil}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "[{}]"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "' + "[" * 100_000 + '"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": " \\u005b{}]"}'),
        (HERMES, '<tool_call>{"arguments": {}, "na'),
        (HERMES, '<tool_call>{"arguments": "{\\"a\\": 1'),
        (HERMES, '<tool_call>{"name": "f'),
        (HERMES, "<tool_call>\n"),
        (HERMES, ONE),
        (MISTRAL, f"[TOOL_CALLS]{ONE}"),
        (MISTRAL, f"[[TOOL_CALLS [{ONE}]"),
        (MISTRAL, "[TOOL_CALLS]f [ARGS]{}"),
        (MISTRAL, "[TOOL_CALLS]f[ARG"),
        (MISTRAL, "[TOOL_CALLS]f[ARGS][]"),
        (MISTRAL, "[TOOL_CALLS]f[CALL_ID]1[CALL_ID]2[ARGS]{}"),
        (MISTRAL, "[TOOL_CALLS][ARGS]{}"),
        (LLAMA3, '{"city": "Rome", "name": "f", "parameters": {}}'),
        (LLAMA3, '{"nam": "Rome"}'),
        (LLAMA3, '{"name": "Rome"}'),
        (LLAMA3, '{"name": "Rome", "par'),
        (LLAMA3, "<|python_tag|>print(1)"),
        (LLAMA3, f"Like so: {ONE}"),
        (LLAMA3, " { } "),
    ],
)
def test_what_is_no_call_is_content_to_the_last_character(tools: ToolFormat, text: str) -> None:
    assert read(text, tools, None) == [content(text)]


def test_a_call_behind_one_that_was_none_is_found() -> None:
    assert read(f'<tool_call>{{"na<tool_call>{ONE}</tool_call>') == [content('<tool_call>{"na'), CALLS[0]]


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ('{"a": 1', '{"a": 1'),
        ('{"a": 1}', '{"a": 1}'),
        ('{"a": 1}}\n</tool_', '{"a": 1}'),
        ('{"a": [1}]}</tool_call>', '{"a": [1}]'),
        ('{"a": "b}}\n</tool_call>', '{"a": "b}}\n</tool_call>'),
    ],
)
def test_a_call_that_is_cut_off_or_broken_keeps_what_was_written_of_it(rest: str, found: str) -> None:
    assert read(f'<tool_call>{{"name": "f", "arguments": {rest}') == [call(0, "f", found)]


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ('{\\"a\\": \\"x', '{"a": "x'),
        ('{\\"a\\": \\"caf\\u00', '{"a": "caf'),
        ('{\\"a\\": \\"\\ud83d\\ude00', '{"a": "😀'),
        ('{\\"a\\": \\"\\ud83d\\ude', '{"a": "'),
        ('{\\"a\\": \\"x\\', '{"a": "x'),
        (" \\n\\u007b}", "{}"),
        ('{a b}"}</tool_', "{a b}"),
    ],
)
def test_a_text_of_json_that_is_cut_off_or_broken_keeps_what_was_written_of_it(rest: str, found: str) -> None:
    assert read(f'<tool_call>{{"name": "f", "arguments": "{rest}') == [call(0, "f", found)]


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        (HERMES, '<tool_call>{"name": "f"'),
        (HERMES, '<tool_call>{"name": "f", "arg'),
        (HERMES, '<tool_call>{"name": "f", "arguments": '),
        (HERMES, '<tool_call>{"name": "f", "arguments": nu'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "\\n'),
        (MISTRAL, '[TOOL_CALLS][{"name": "f",'),
        (MISTRAL, "[TOOL_CALLS]f[ARGS]"),
        (MISTRAL, "[TOOL_CALLS]f[CALL_ID]x7"),
        (LLAMA3, '<|python_tag|>{"name": "f", "par'),
        (LLAMA3, '{"name": "f", "parameters": '),
    ],
)
def test_a_call_that_is_cut_off_before_its_arguments_has_none(tools: ToolFormat, text: str) -> None:
    assert read(text, tools) == [call(0, "f", "")]


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        (HERMES, '<tool_call>\n{"name": "f"}\n</tool_call>'),
        (HERMES, '<tool_call>{"type": "function", "name": "f" }'),
        (MISTRAL, '[TOOL_CALLS][{"name": "f"}]'),
        (LLAMA3, '<|python_tag|>{"name": "f"}'),
    ],
)
def test_a_call_in_a_frame_needs_no_arguments(tools: ToolFormat, text: str) -> None:
    assert read(text, tools) == [call(0, "f", "{}")]


@pytest.mark.parametrize(
    ("tools", "text", "said"),
    [
        (HERMES, f"<tool_call>{ONE[:-1]}</tool_call>", ""),
        (HERMES, f"<tool_call>\n{ONE[:-1]}\n</tool_call>\n\nDone.", "\n\nDone."),
        (HERMES, f'<tool_call>{ONE[:-1]}, "x": [1</tool_call>Done.', "Done."),
        (HERMES, f"<tool_call>{ONE[:-1]}\nDone.", "\nDone."),
        (MISTRAL, f"[TOOL_CALLS][{ONE[:-1]}]", ""),
        (MISTRAL, f'[TOOL_CALLS][{ONE[:-1]}, "x": [1]]Done.', "Done."),
    ],
)
def test_a_call_that_lacks_its_last_brace_ends_with_its_frame(tools: ToolFormat, text: str, said: str) -> None:
    assert read(text, tools) == [CALLS[0], *([content(said)] if said else [])]


def test_a_call_behind_one_that_lacks_its_last_brace_is_found() -> None:
    text = f"<tool_call>{ONE[:-1]}</tool_call><tool_call>{TWO}</tool_call>"
    assert read(text) == CALLS
    assert read(f"[TOOL_CALLS][{ONE}, {TWO[:-1]}]", MISTRAL) == CALLS


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("<tool_call>{", 0),
        ('<tool_call>{"name": "f", "arguments": {"a": "}', 0),
        (f"<tool_call>{ONE}</tool_call>", None),
        (f"<tool_call>{ONE[:-1]}", None),
        (f'<tool_call>{ONE}</tool_call><tool_call>{{"name": "f", "arguments": {{', 1),
        (f'<tool_call>{ONE}</tool_call><tool_call>{{"name": "f", "arg', 1),
        (f'<tool_call>{ONE}</tool_call><tool_call>{{"na', 1),
        (f"<tool_call>{ONE}</tool_call><tool_call>f(1)", None),
        ('<tool_call>{"name": "f", "arguments": "{', 0),
        ('<tool_call>{"name": "f", "arguments": "{}"', None),
        ('<tool_call>{"name": "f"}', None),
        ("so", None),
    ],
)
def test_a_call_whose_arguments_break_off_is_known(text: str, number: int | None) -> None:
    reader = MessageReader(HERMES, THINK, "")
    reader.push(text, finished=True)
    assert reader.open_call == number
    assert MessageReader(None, None, "").open_call is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"<tool_call>{ONE}\nso</tool_call>", "\nso</tool_call>"),
        (f"<tool_call>{ONE}</tool_cart>", "</tool_cart>"),
        (f"<tool_call>{ONE[:-1]}: 1}}", ": 1}"),
        (f"<tool_call>{ONE[:-1]}, 1<b></tool_call>", ", 1<b></tool_call>"),
    ],
)
def test_what_cannot_follow_a_call_is_content(text: str, rest: str) -> None:
    assert read(text) == [CALLS[0], content(rest)]


def test_a_call_is_streamed_as_soon_as_it_is_certain() -> None:
    reader = MessageReader(HERMES, None, "")
    steps = ["<tool_", 'call>\n{"name": "f", ', '"arguments": ', '{"a": "x', "y", '"}', "}", "</tool_call>"]
    seen = [[(part.name, part.text) for part in reader.push(step)] for step in steps]
    assert seen == [[], [], [], [("f", '{"a": "x')], [(None, "y")], [(None, '"}')], [], []]


@pytest.mark.parametrize(
    ("text", "prompt", "found"),
    [
        ("<think>\nWell,\n so\n</think>\n\nYes.", "", [thought("Well,\n so"), content("Yes.")]),
        ("\nWell </thin\n</think>Yes.", "assistant\n<think>\n", [thought("Well </thin"), content("Yes.")]),
        ("Yes.", "<think>\n\n</think>\n\n", [content("Yes.")]),
        ("<think>\n\n</think>\n\nYes.", "", [content("Yes.")]),
        ("<think>Well", "", [thought("Well")]),
        ("<think>Well </thi", "", [thought("Well </thi")]),
        ("\n Yes <think>no</think>", "", [content("\n Yes <think>no</think>")]),
        ("<thi", "", [content("<thi")]),
        ("<think>a</think>b</think>c", "", [thought("a"), content("b</think>c")]),
        (f"<think>\n<tool_call>{ONE}\n</think>\n<tool_call>{ONE}", "", [thought(f"<tool_call>{ONE}"), CALLS[0]]),
        ("", "", []),
    ],
)
def test_reasoning_is_told_from_what_is_said(text: str, prompt: str, found: list[Any]) -> None:
    assert read(text, prompt=prompt) == found


@pytest.mark.parametrize(
    ("begun", "found"),
    [
        ("<think>\nWell,", [thought("so"), content("Yes.")]),
        ("\n<think>", [thought("so"), content("Yes.")]),
        ("<think>Well</think>Yes:", [content(" so</think>Yes.")]),
        ("Well <think>", [content(" so</think>Yes.")]),
    ],
)
def test_a_message_that_is_continued_may_have_begun_to_reason(begun: str, found: list[Any]) -> None:
    reader = MessageReader(HERMES, THINK, f"<|assistant|>{begun}", begun)
    assert merged(reader.push(" so</think>Yes.", finished=True)) == found


def test_other_marks_of_reasoning() -> None:
    assert read("[THINK]a <b[/THINK]c", MISTRAL, MISTRAL_THINK) == [thought("a <b"), content("c")]


def test_without_formats_a_text_is_content() -> None:
    text = f"<think>a</think><tool_call>{ONE}</tool_call>"
    assert read(text, None, None) == [content(text)]


def test_long_texts_of_what_may_be_a_mark_are_read_to_their_end() -> None:
    for text in ("\n" * 20_000, "<" * 20_000, "<tool_call>" * 4_000, '<tool_call>{"name": "' + "f" * 20_000):
        assert read(text) == [content(text)]
    arguments = json.dumps({"a": ["\\" * 10_000]})
    assert read(f'<tool_call>{{"name": "f", "arguments": {arguments}}}') == [call(0, "f", arguments)]


def test_parts_are_as_few_as_they_can_be() -> None:
    parts = [content("a"), content(""), content("b"), thought("c"), call(0, "f", ""), content("")]
    assert merged(parts) == [content("ab"), thought("c"), call(0, "f", "")]
    assert all(one.kind is not other.kind for one, other in pairwise(merged(parts)))
