"""Whatever a model writes, however it is cut: the same message, no character lost, nothing held back without need."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise, takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import MessagePart, PartKind
from octavo.text.message_part import merged
from octavo.text.message_reader import MessageReader
from octavo.text.reasoning import MISTRAL_THINK, THINK, ReasoningFormat
from octavo.text.tool_formats import HERMES, LLAMA3, MISTRAL, ToolFormat

ONE = '{"name": "f", "arguments": {"a": "x"}}'
# What frames and calls are made of, whole and in parts, in any order.
FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "[THINK]", "[/THINK]", ONE,
    '{"name": "g", "parameters": {', '{"arguments": {}, "name": "h"}', '"name"', ": ", "{", "}", "[", "]", ",", ";",
    '{"x', '"', "\\", "\n", " ", "<", "</", "tool", "think>", "x", "é😀",
    "[ARGS]", "[CALL_ID]", '"arguments": ', '"{', '}"', '"more": ',
    '<tool_call>{"name": "f"', ', "arguments": "{', '\\"', "\\u00e9", "\\ud83d", "\\ude00", "\\u", ", more",
    "null", '""', "</tool_call", '[TOOL_CALLS][{"name": "f", "arguments": {}',
]  # fmt: skip
TOOLS = st.sampled_from([HERMES, LLAMA3, MISTRAL, None])
REASONING = st.sampled_from([THINK, MISTRAL_THINK, None])
PROMPTS = st.sampled_from(["", "<think>\n"])
# With one end or another of these, whatever has begun becomes what it may become.
FRAMES = {
    HERMES: ['<tool_call>{"name": "look", "arguments": {}}</tool_call>', '<tool_call>{"name": "f", "arguments": "{}"}'],
    LLAMA3: ['<|python_tag|>{"name": "f", "parameters": {}}; {"parameters": {}, "name": "f"}'],
    MISTRAL: [
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"arguments": {}, "name": "f"}]',
        "[TOOL_CALLS]f[CALL_ID]x[ARGS]{}",
    ],
    THINK: ["<think>y</think>z"],
    MISTRAL_THINK: ["[THINK]y[/THINK]z"],
    None: [],
}


def bent(frame: str, start: int, num_left_out: int, more: str) -> str:
    """Almost a frame, or one that is whole."""
    return frame[:start] + more + frame[start + num_left_out :]


FRAGMENT = st.sampled_from(FRAGMENTS)
BENT = st.builds(
    bent,
    st.sampled_from([frame for frames in FRAMES.values() for frame in frames]),
    st.integers(0, 60),
    st.integers(0, 3) | st.just(60),
    st.just("") | FRAGMENT,
)
# Fragments alone seldom make a call.
TEXTS = (st.lists(FRAGMENT, max_size=12) | st.lists(BENT | FRAGMENT, max_size=4)).map("".join)
MORE = [
    '"',
    "{}}",
    'a9"}',
    '"name": "f"}',
    '"}", "name": "f"}',
    '}", "name": "f"}',
    "[ARGS]{}",
    'ype": "", "name": "f", "parameters": {}}',
    '"arguments": {}}',
    '}, "name": "f"}',
    ', "name": "f"}',
    'll, "name": "f"}',
]


def endings(*formats: ToolFormat | ReasoningFormat | None) -> list[str]:
    """How a text may go on: as nothing at all, as nothing in particular, or as the rest of a frame."""
    frames = [frame for each in formats for frame in FRAMES[each]]
    return ["", "\x00", *MORE, *(frame[i:] for frame in frames for i in range(len(frame)))]


def read(reader: MessageReader, pieces: Iterable[str]) -> list[MessagePart]:
    return merged([part for piece in pieces for part in reader.push(piece)] + reader.push("", finished=True))


def atoms(parts: Iterable[MessagePart]) -> list[object]:
    """Parts as characters and names, so that they can be compared however they are cut."""
    found: list[object] = []
    for part in parts:
        found += [] if part.name is None else [(part.call, part.name)]
        found += [(part.kind, part.call, character) for character in part.text]
    return found


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 100)), tools=TOOLS, reasoning=REASONING, prompt=PROMPTS)
def test_however_a_text_is_cut_the_message_is_the_same(
    text: str, cuts: list[int], tools: ToolFormat | None, reasoning: ReasoningFormat | None, prompt: str
) -> None:
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(at)]
    assert "".join(pieces) == text
    cut, spelled, whole = (MessageReader(tools, reasoning, prompt) for _ in range(3))
    assert read(cut, pieces) == read(spelled, text) == merged(whole.push(text, finished=True))
    assert cut.open_call == spelled.open_call == whole.open_call


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, tools=TOOLS)
def test_without_a_call_every_character_is_content(text: str, tools: ToolFormat | None) -> None:
    parts = read(MessageReader(tools, None, ""), [text])
    assert "".join(part.text for part in parts) == text or any(part.name for part in parts)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, tools=TOOLS)
def test_content_around_calls_is_pieces_of_the_text_in_their_order(text: str, tools: ToolFormat | None) -> None:
    position = 0
    for part in read(MessageReader(tools, None, ""), text):
        if part.kind is PartKind.CONTENT:
            position = text.index(part.text, position) + len(part.text)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, tools=TOOLS, reasoning=REASONING, prompt=PROMPTS)
def test_what_is_shown_is_certain_and_what_is_certain_is_shown(
    text: str, tools: ToolFormat | None, reasoning: ReasoningFormat | None, prompt: str
) -> None:
    shown = atoms(MessageReader(tools, reasoning, prompt).push(text))
    ways = [
        atoms(read(MessageReader(tools, reasoning, prompt), [text, ending])) for ending in endings(tools, reasoning)
    ]
    certain = [same[0] for same in takewhile(lambda same: len(set(same)) == 1, zip(*ways, strict=False))]
    assert shown == certain


@given(text=TEXTS, tools=TOOLS)
def test_calls_are_numbered_and_named_once_before_their_arguments(text: str, tools: ToolFormat | None) -> None:
    names = []
    for part in MessageReader(tools, None, "").push(text, finished=True):
        if part.kind is PartKind.TOOL_CALL:
            assert part.call == len(names) - (part.name is None)
            names += [part.name] if part.name is not None else []
