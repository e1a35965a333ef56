"""From what was asked for to masks: each kind over a vocabulary of bytes, and why some cannot be followed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from grammar.byte_vocabulary import BYTES
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

from octavo.grammar.compiler import Compiler, UnusableGrammar
from octavo.structured_outputs import Kind, StructuredOutputs


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(BYTES)


def accepts(compiler: Compiler, kind: Kind, grammar: object, text: str) -> bool:
    """Whether a text may be written byte by byte, and may end there."""
    matcher = compiler.compile(asked(kind, grammar))
    for byte in text.encode():
        if not matcher.compute_bitmask()[byte // 8] >> byte % 8 & 1:
            return False
        assert matcher.consume_token(byte)
    end = compiler.end_token_id
    return bool(matcher.compute_bitmask()[end // 8] >> end % 8 & 1)


def asked(kind: Kind, grammar: object) -> StructuredOutputs:
    return StructuredOutputs(kind, grammar if isinstance(grammar, str) else json.dumps(grammar))


def why_not(compiler: Compiler, kind: Kind, grammar: object) -> str:
    with pytest.raises(UnusableGrammar) as caught:
        compiler.try_out(asked(kind, grammar))
    return str(caught.value)


TAG = {
    "structures": [
        {"begin": "<f=a>", "schema": {"type": "object"}, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"type": "integer"}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}


def call(**more: Any) -> dict[str, Any]:
    tag = {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": {"type": "integer"}}}
    return {"format": {"type": "triggered_tags", "triggers": ["<f>"], "tags": [{**tag, "end": ["</f>", "!"]}], **more}}


def separated(**more: Any) -> dict[str, Any]:
    return {"format": {"type": "tags_with_separator", "tags": call()["format"]["tags"], "separator": ",", **more}}


THINK = {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"}


@pytest.mark.parametrize(
    ("kind", "grammar", "good", "bad"),
    [
        ("json", {"type": "array", "items": {"type": "integer"}}, ["[1,\n    2]", "[]"], ["[1.5]", "[1", '["1"]']),
        ("json", True, ["1", '"a"', "{}"], ["a", ""]),
        ("json", {"type": "string"}, ['"é\\n"'], ['"\n"', "'a'"]),
        ("json_object", "", ['{"a": {"b": null}}'], ["[]", "1"]),
        ("regex", "a/b[0-9]{2}\n?", ["a/b12", "a/b12\n"], ["a/b1", "ab12"]),
        ("choice", ["yes", "yes, sir", 'é "q" \\'], ["yes", "yes, sir", 'é "q" \\'], ["no", "yes,", "yesyes"]),
        ("grammar", 'start: "a" NUM\nNUM: /[0-9]+/', ["a1"], ["a", "b1"]),
        ("grammar", 'root ::= "a" x\nx ::= [0-9]+', ["a1"], ["a", "b1"]),
        ("structural_tag", TAG, ["hm", "x <f=a>{}</f> y", "<f=b>1</f><f=a>{}</f>"], ["<f=c>", "<f=b>{}</f>"]),
        ("structural_tag", call(), ["", "so: <f>1</f> and <f>2!", "<f"], ["<f>a", "<f>1"]),
        ("structural_tag", call(at_least_one=True), ["<f>1</f> and"], ["", "text"]),
        ("structural_tag", call(at_least_one=True, stop_after_first=True), ["a <f>1!"], ["", "<f>1! and"]),
        (
            "structural_tag",
            {"format": {"type": "sequence", "elements": [THINK, {"type": "regex", "pattern": "[0-9]/"}]}},
            ["<t>hm </ t</t>1/", "<t></t>2/"],
            ["1/", "<t>hm</t>", "<t>a</t>1/1/"],
        ),
        (
            "structural_tag",
            {"format": {"type": "or", "elements": [{"type": "const_string", "value": "a\"b"}, THINK]}},
            ['a"b', "<t>x</t>"],
            ["a", "x"],
        ),
        ("structural_tag", separated(at_least_one=True), ["<f>1!", "<f>1!,<f>2</f>"], ["", "<f>1!<f>2</f>"]),
    ],
)  # fmt: skip
def test_each_kind_allows_what_it_describes_and_nothing_else(
    compiler: Compiler, kind: Kind, grammar: object, good: list[str], bad: list[str]
) -> None:
    assert [text for text in good if not accepts(compiler, kind, grammar, text)] == []
    assert [text for text in bad if accepts(compiler, kind, grammar, text)] == []


@pytest.mark.parametrize(
    ("kind", "grammar", "said"),
    [
        ("json", {"not": {}}, "without these keywords, which are not supported: not"),
        ("json", {"type": "array", "uniqueItems": True, "contains": {}}, "not supported: contains, uniqueItems"),
        ("json", {"not": {}, "x-guidance": {"lenient": True}}, "without these keywords, which are not supported: not"),
        ("json", {"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf constraints are not supported"),
        ("json", {"type": "string", "format": "color"}, "Unknown format: color"),
        ("json", {"$ref": "https://example.com/schema"}, "is not present"),
        ("json", {"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
        ("json", False, "a JSON schema must be an object"),
        ("regex", "(", "a regular expression that can be followed"),
        ("regex", "(?=a)b", "look-around"),
        ("grammar", 'start: "a" NUM', 'unknown name: "NUM"'),
        ("grammar", "nonsense ][", "a grammar (Lark or GBNF) that can be followed"),
        ("structural_tag", {}, "neither 'format' nor 'structures'"),
        ("structural_tag", {"structures": [], "triggers": ["a"]}, "'structures' must be a list that is not empty"),
        ("structural_tag", {"structures": [{"begin": "b"}], "triggers": ["a"]}, "begins with none of the triggers"),
        ("structural_tag", {"format": {"type": "qwen"}}, "format 'qwen' is not supported; known are const_string"),
        ("structural_tag", {"format": {"type": "json_schema", "json_schema": {"not": {}}}}, "not supported: not"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_words(
    compiler: Compiler, kind: Kind, grammar: object, said: str
) -> None:
    text = why_not(compiler, kind, grammar)
    assert said in text
    assert "\n" not in text and len(text) < 500


# A value for each keyword with which it says something.
KEYWORDS: dict[str, Any] = {
    **{key: {"type": "string"} for key in ("not", "if", "then", "else", "contains", "propertyNames", "items")},
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties", "additionalProperties"), False),
    **{key: {"a": {"type": "string"}} for key in ("properties", "patternProperties", "dependentSchemas")},
    **{key: [{"type": "string"}] for key in ("allOf", "anyOf", "oneOf", "prefixItems")},
    **{f"{end}{what}": 2 for end in ("min", "max") for what in ("Contains", "Items", "Length", "Properties")},
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), 2),
    "type": "string",
    "const": "a",
    "enum": ["a"],
    "pattern": "a",
    "required": ["a"],
    "uniqueItems": True,
    "dependentRequired": {"a": ["b"]},
}
REFUSED = {
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames", "uniqueItems"),
    *("unevaluatedItems", "unevaluatedProperties", "dependentSchemas", "dependentRequired"),
}


def test_every_keyword_that_restricts_documents_is_followed_or_refused_by_name(compiler: Compiler) -> None:
    vocabularies = ("applicator", "validation", "unevaluated")
    contents = (REGISTRY[f"https://json-schema.org/draft/2020-12/meta/{name}"].contents for name in vocabularies)
    assert {key for each in contents for key in each["properties"]} == KEYWORDS.keys()
    for key in KEYWORDS.keys() - REFUSED:
        compiler.try_out(asked("json", {key: KEYWORDS[key]}))
    for key in REFUSED:
        for schema in ({key: KEYWORDS[key]}, {"properties": {"a": {"items": {key: KEYWORDS[key]}}}}):
            assert why_not(compiler, "json", schema).endswith(f"keywords, which are not supported: {key}")


def test_white_space_does_not_go_on_for_ever(compiler: Compiler) -> None:
    assert accepts(compiler, "json", {"type": "array"}, "[" + " " * 24 + "]")
    assert not accepts(compiler, "json", {"type": "array"}, "[" + " " * 25 + "]")
    flexible = {"type": "array", "x-guidance": {"whitespace_flexible": True}}
    assert accepts(compiler, "json", flexible, "[" + " " * 100 + "]")


def test_a_special_token_is_no_part_of_a_text(compiler: Compiler) -> None:
    mask = compiler.compile(asked("regex", "[^a]+")).compute_bitmask()
    special = BYTES.special_token_ids
    assert special and not any(mask[token_id // 8] >> token_id % 8 & 1 for token_id in special)


@pytest.mark.parametrize(
    "described",
    [
        {"structures": [{"begin": "<eos>1", "schema": {"type": "integer"}, "end": "<bos>"}], "triggers": ["<eos>"]},
        {"structures": [{"begin": "<eos>1", "schema": {"type": "integer"}, "end": "<bos>"}], "triggers": ["<e"]},
        {"format": {"type": "tag", "begin": "a<eos>1", "content": {"type": "any_text"}, "end": "<bos>"}},
    ],
)
def test_in_a_structural_tag_a_special_token_stands_for_its_text(compiler: Compiler, described: dict[str, Any]) -> None:
    eos, bos = BYTES.special_token_ids
    for begin, end in (([*b"<eos>"], [*b"<bos>"]), ([eos], [*b"<bos>"]), ([eos], [bos])):
        matcher = compiler.compile(asked("structural_tag", described))
        for token_id in (*b"a", *begin, *b"12", *end):
            assert matcher.compute_bitmask()[token_id // 8] >> token_id % 8 & 1
            assert matcher.consume_token(token_id)
        assert matcher.is_accepting()
