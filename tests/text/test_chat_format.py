"""Which format a model has, what makes its text a call, and marks that are special tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from text.tiny_tokenizers import train_byte_level
from tokenizers import AddedToken

from octavo import ChatFormat, InvalidRequest, SamplingParams
from octavo.config import REASONING_PARSERS, TOOL_CALL_PARSERS, EngineConfig
from octavo.grammar.compiler import Compiler, UnusableGrammar
from octavo.structured_outputs import MAX_CHARACTERS
from octavo.text.chat_format import open_chat_format
from octavo.text.detokenizer import Detokenizer
from octavo.text.message_part import merged
from octavo.text.reasoning import MISTRAL_THINK, REASONING_FORMATS, THINK, ReasoningFormat
from octavo.text.tokenizer import Tokenizer
from octavo.text.tool_formats import HERMES, LLAMA3, MISTRAL, MISTRAL_NAMED, TOOL_FORMATS, ToolFormat
from octavo.vocabulary import Vocabulary

SCHEMA = {
    "type": "object",
    "properties": {"n": {"$ref": "#/$defs/N"}},
    "required": ["n"],
    "$defs": {"N": {"enum": [1, 2]}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "count", "parameters": SCHEMA | {"additionalProperties": False}}},
    {"type": "function", "function": {"name": 'say "::="', "description": "says\n::= something"}},
]
ASKED = [("count", {"n": 1}), ('say "::="', {"text": "héllo ::= </tool_call>"}), ("count", {"n": 2})]
LONG = {"parameters": {"description": "a" * MAX_CHARACTERS}}
FORMATS = list(TOOL_FORMATS.values())


@pytest.fixture(scope="module")
def special() -> Tokenizer:
    """The marks of Mistral's and Llama's models are special tokens, and so is one that is no mark."""
    backend = train_byte_level()
    marks = [*MISTRAL.marks, *LLAMA3.marks, *MISTRAL_THINK.marks]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in sorted(marks)])
    return Tokenizer(backend, {"eos_token": "<|eos|>"}, None)


@pytest.fixture(scope="module")
def compiler(special: Tokenizer) -> Compiler:
    texts = [special.token_text(token_id) for token_id in range(special.vocab_size)]
    # Tokens that are whole texts, and every byte: enough to write anything.
    tokens = [text.encode() if "\ufffd" not in text else b"" for text in texts] + [bytes([i]) for i in range(256)]
    return Compiler(Vocabulary(tokens, sorted(special.special_token_ids)))


def written(tools: ToolFormat, calls: Sequence[tuple[str, Any]]) -> str:
    """What a model of this format writes to call these."""
    objects = [json.dumps({"name": name, tools.arguments: arguments}, ensure_ascii=False) for name, arguments in calls]
    if tools is HERMES:
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in objects)
    return "; ".join(objects) if tools is LLAMA3 else f"[TOOL_CALLS][{', '.join(objects)}]"


def token_ids(special: Tokenizer, text: str) -> list[int]:
    """Special tokens, and each other byte as the compiler's vocabulary has it."""
    found: list[int] = []
    for token_id in special.encode(text, add_special_tokens=False):
        data = special.token_text(token_id).encode()
        found += [token_id] if token_id in special.special_token_ids else [special.vocab_size + byte for byte in data]
    return found


def accepts(
    compiler: Compiler, special: Tokenizer, tools: ToolFormat, text: str, known: object = TOOLS, **choice: Any
) -> bool:
    """Whether a forced call of one that is known may be this text, to its end."""
    matcher = compiler.compile(ChatFormat(tools, None).forced_calls(known, special, **choice))
    ids = [token_id for line in text.splitlines(keepends=True) for token_id in token_ids(special, line)]
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


@pytest.mark.parametrize("tools", FORMATS, ids=lambda tools: tools.name)
@pytest.mark.parametrize("calls", [ASKED[:1], ASKED[1:2], ASKED])
def test_a_forced_text_is_read_as_the_calls_that_were_forced(
    compiler: Compiler, special: Tokenizer, tools: ToolFormat, calls: list[tuple[str, Any]]
) -> None:
    text = written(tools, calls)
    assert accepts(compiler, special, tools, text)
    parts = merged(ChatFormat(tools, None).reader("").push(text, finished=True))
    assert [(part.name, json.loads(part.text)) for part in parts] == calls


@pytest.mark.parametrize("tools", FORMATS, ids=lambda tools: tools.name)
def test_a_forced_text_is_nothing_else(compiler: Compiler, special: Tokenizer, tools: ToolFormat) -> None:
    for text in (
        "",
        "Hello",
        written(tools, [("other", {})]),
        written(tools, [("count", {"n": 3})]),
        written(tools, []),
    ):
        assert not accepts(compiler, special, tools, text), text
    assert not accepts(compiler, special, tools, written(tools, ASKED[1:2]), name="count")
    assert accepts(compiler, special, tools, written(tools, ASKED[:1]), name="count")
    for choice in ({"parallel": False}, {"name": "count"}):
        assert not accepts(compiler, special, tools, written(tools, [ASKED[0], ASKED[2]]), **choice)


def test_calls_that_begin_with_their_names_are_forced_where_the_template_writes_them_so(
    compiler: Compiler, special: Tokenizer
) -> None:
    chat_format = open_chat_format(EngineConfig(), "[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}")
    assert chat_format.tools is MISTRAL_NAMED
    text = '[TOOL_CALLS]count[ARGS]{"n": 1}[TOOL_CALLS]count[ARGS]{"n": 2}'
    assert accepts(compiler, special, MISTRAL_NAMED, text, TOOLS[:1])
    assert not accepts(compiler, special, MISTRAL_NAMED, text, TOOLS[:1], parallel=False)
    assert not accepts(compiler, special, MISTRAL_NAMED, written(MISTRAL, ASKED[:1]), TOOLS[:1])
    parts = merged(chat_format.reader("").push(text, finished=True))
    assert [(part.name, part.text) for part in parts] == [("count", '{"n": 1}'), ("count", '{"n": 2}')]
    with pytest.raises(
        InvalidRequest, match=r"^tools\[1\]\.function\.name: 'say \"::=\"' is not allowed; expected a name of letters"
    ):
        chat_format.forced_calls(TOOLS, special)


def refused_tool(compiler: Compiler, special: Tokenizer, parameters: Any, name: str | None = None) -> str:
    """What is said of the second of three tools."""
    tools = [TOOLS[0], {"type": "function", "function": {"name": "look", "parameters": parameters}}, TOOLS[1]]
    asked = ChatFormat(HERMES, None).forced_calls(tools, special, name=name)
    with pytest.raises(UnusableGrammar) as caught:
        compiler.try_out(asked)
    return str(asked.refusal(str(caught.value)))


@pytest.mark.parametrize("name", [None, "look"])
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"properties": {"a": {"not": {}}}}, "without these keywords, which are not supported: not"),
        ({"properties": {"a": {"type": "strin"}}}, "that can be followed (Invalid type: strin)"),
        ({"$ref": "#/$defs/a"}, "that can be followed (Pointer '/$defs/a' does not exist)"),
    ],
)
def test_a_refusal_of_forced_calls_names_the_schema_that_cannot_be_followed(
    compiler: Compiler, special: Tokenizer, parameters: Any, expected: str, name: str | None
) -> None:
    said = refused_tool(compiler, special, parameters, name)
    assert said == f"tools[1].function.parameters: 'look' is not allowed; expected a JSON schema {expected}"


def test_a_refusal_of_forced_calls_speaks_of_the_tools_and_not_of_the_grammar_made_of_them(special: Tokenizer) -> None:
    long = {**TOOLS[1], "function": TOOLS[1]["function"] | LONG}
    with pytest.raises(InvalidRequest) as too_long:
        ChatFormat(HERMES, None).forced_calls([TOOLS[0], long], special)
    assert str(too_long.value).startswith("tools: 'count, say \"::=\"' is not allowed; expected at most")
    one = ChatFormat(HERMES, None).forced_calls(TOOLS, special, name="count")
    assert str(one.refusal("less")) == "tools[0].function.parameters: 'count' is not allowed; expected less"


def test_forced_arguments_are_an_object(compiler: Compiler, special: Tokenizer) -> None:
    def tool(kind: object) -> list[Any]:
        return [{"type": "function", "function": {"name": "look", "parameters": {"type": kind}}}]

    for kind in ("array", ["string", "null"], 5, None):
        with pytest.raises(InvalidRequest) as caught:
            ChatFormat(HERMES, None).forced_calls(tool(kind), special)
        assert caught.value.parameter == "tools[0].function.parameters.type"
    for arguments, allowed in (({}, True), (None, False)):
        text = written(HERMES, [("look", arguments)])
        assert accepts(compiler, special, HERMES, text, tool(["object", "null"])) is allowed


def test_a_tool_that_is_not_there_cannot_be_forced(special: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"tool_choice: 'look' .* one of the `tools`: count, say"):
        ChatFormat(HERMES, None).forced_calls(TOOLS, special, name="look")
    with pytest.raises(InvalidRequest, match=r"tool_choice: 'required' .* this model calls no tools"):
        ChatFormat(None, None).forced_calls(TOOLS, special)


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        (None, HERMES, None),
        ("{{ messages }}", HERMES, None),
        (
            "... within <tool_call></tool_call> tags, with \"parameters\": ... {{ content.split('</think>') }}",
            HERMES,
            THINK,
        ),
        ('{"name": function name, "parameters": dictionary}', LLAMA3, None),
        ("{{ '[TOOL_CALLS]' }}", MISTRAL, None),
        ("{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}", MISTRAL_NAMED, None),
        ("{{ '[TOOL_CALLS]' }}[THINK]{{ thoughts }}[/THINK]", MISTRAL, MISTRAL_THINK),
    ],
)
def test_the_template_tells_the_format(
    template: str | None, tools: ToolFormat, reasoning: ReasoningFormat | None
) -> None:
    assert open_chat_format(EngineConfig(), template) == ChatFormat(tools, reasoning)


def test_the_configuration_goes_before_the_template() -> None:
    for name in TOOL_CALL_PARSERS[1:]:
        assert open_chat_format(EngineConfig(tool_call_parser=name), "<tool_call>").tools is TOOL_FORMATS.get(name)
    assert open_chat_format(EngineConfig(tool_call_parser="mistral"), "[ARGS]").tools is MISTRAL_NAMED
    for name in REASONING_PARSERS[1:]:
        found = open_chat_format(EngineConfig(reasoning_parser=name), "</think>").reasoning
        assert found is REASONING_FORMATS.get(name)
    assert {*TOOL_CALL_PARSERS} == {"auto", "none", *TOOL_FORMATS}
    assert {*REASONING_PARSERS} == {"auto", "none", *REASONING_FORMATS}


def shown(tokenizer: Tokenizer, text: str) -> str:
    """What a completion of the tokens of `text` shows."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return Detokenizer(tokenizer, [], SamplingParams()).push(ids, finished=True).text


@pytest.mark.parametrize("tools", [MISTRAL, LLAMA3], ids=lambda tools: tools.name)
def test_marks_that_are_special_tokens_are_shown_and_other_special_tokens_are_not(
    special: Tokenizer, tools: ToolFormat
) -> None:
    text = f"<|im_start|>Well{tools.opening}[1]<|im_end|>"
    assert shown(special, text) == "Well[1]"
    assert shown(special.showing(tools.marks), text) == f"Well{tools.opening}[1]"
    assert tools.opening not in shown(special.showing(THINK.marks), text)


def test_a_tokenizer_without_such_tokens_stays_as_it_is(special: Tokenizer) -> None:
    assert special.showing(HERMES.marks) is special
    assert special.special_token_id("<tool_call>") is None and special.special_token_id("the") is None
    assert special.special_token_id("[TOOL_CALLS]") in special.special_token_ids
