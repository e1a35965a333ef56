"""How clients ask for structured output: every spelling, and what is refused by which name."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import InvalidRequest
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import MAX_CHARACTERS, StructuredOutputs

SCHEMA = {"type": "array", "items": {"type": "integer"}}
TEXT = '{"type":"array","items":{"type":"integer"}}'
TAG = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}


def read(mapping: dict[str, Any]) -> StructuredOutputs | None:
    return SamplingParams.from_mapping(mapping).structured_outputs


def refusal(mapping: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(mapping)
    return caught.value


@pytest.mark.parametrize(
    ("mapping", "kind", "text"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, "json", TEXT),
        ({"response_format": '{"type": "json_object"}'}, "json_object", ""),
        ({"structured_outputs": {"json": SCHEMA}}, "json", TEXT),
        ({"structured_outputs": {"json": TEXT, "regex": None, "_backend": "x"}}, "json", TEXT),
        ({"structured_outputs": '{"regex": "a+"}'}, "regex", "a+"),
        ({"structured_outputs": {"json_object": "true"}}, "json_object", ""),
        ({"structured_outputs": {"choice": ["b", "a", "b"]}}, "choice", '["b","a"]'),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", 'start: "a"'),
        ({"guided_decoding": {"regex": "a", "backend": "xgrammar"}}, "regex", "a"),
        ({"guided_json": SCHEMA}, "json", TEXT),
        ({"guided_json": TEXT}, "json", TEXT),
        ({"guided_json": True}, "json", "true"),
        ({"guided_json_object": True}, "json_object", ""),
        ({"guided_regex": "[a-z]"}, "regex", "[a-z]"),
        ({"guided_choice": ["é"]}, "choice", '["\\u00e9"]'),
        ({"guided_choice": '["a"]'}, "choice", '["a"]'),
        ({"guided_grammar": "root ::= [a-z]"}, "grammar", "root ::= [a-z]"),
    ],
)
def test_every_spelling_is_read(mapping: dict[str, Any], kind: str, text: str) -> None:
    asked = read(mapping)
    assert asked is not None
    assert (asked.kind, asked.text) == (kind, text)
    assert asked.parameter.startswith(next(iter(mapping)))


@pytest.mark.parametrize("value", [TAG, {"type": "structural_tag", **TAG}])
def test_a_structural_tag_is_read_from_both_of_its_places(value: dict[str, Any]) -> None:
    is_format = "type" in value
    asked = read({"response_format": value} if is_format else {"structured_outputs": {"structural_tag": value}})
    assert asked == StructuredOutputs(
        "structural_tag", '{"structures":[{"begin":"<a>","schema":{},"end":"</a>"}],"triggers":["<a"]}'
    )


def test_the_same_grammar_is_equal_whatever_it_was_called() -> None:
    assert len({read({"guided_json": SCHEMA}), read({"structured_outputs": {"json": TEXT}})}) == 1


@pytest.mark.parametrize(
    "mapping",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_json": None, "structured_outputs": None},
        {"structured_outputs": {"json_object": False}},
    ],
)
def test_what_asks_for_nothing_gives_nothing(mapping: dict[str, Any]) -> None:
    assert read(mapping) is None


@pytest.mark.parametrize(
    ("mapping", "option"),
    [
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": True}}, '"whitespace_flexible":false'),
        ({"structured_outputs": {"json_object": True, "whitespace_pattern": " "}}, '"whitespace_pattern":" "'),
        ({"guided_json": {}, "guided_whitespace_pattern": " ?"}, '"whitespace_pattern":" ?"'),
    ],
)
def test_how_json_is_written_goes_into_the_schema(mapping: dict[str, Any], option: str) -> None:
    asked = read(mapping)
    assert asked is not None and option in asked.text


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (
            {"guided_json": {}, "guided_regex": "a"},
            "guided_regex: 'a' is not allowed; expected nothing here, since guided_json",
        ),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs: ['json', 'regex'] is not allowed"),
        ({"structured_outputs": {}}, "structured_outputs: [] is not allowed; expected exactly one of json,"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs: 'xml' is not allowed; expected one of json,"),
        (
            {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
            ".disable_additional_properties: True",
        ),
        ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "no option for JSON beside regex"),
        ({"structured_outputs": 5}, "structured_outputs: 5 is not allowed; expected a JSON object"),
        ({"response_format": {"type": "yaml"}}, "response_format: {'type': 'yaml'} is not allowed"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: None is not allowed"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema: None is",
        ),
        ({"guided_json": "{"}, "guided_json: '{' is not allowed; expected JSON"),
        ({"guided_json": "[]"}, "guided_json: [] is not allowed; expected a JSON object"),
        ({"guided_json": {"minimum": float("nan")}}, "expected what JSON can hold"),
        ({"guided_choice": []}, "guided_choice: [] is not allowed; expected at least one choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice[1]: 1 is not allowed"),
        ({"guided_regex": ""}, "guided_regex: '' is not allowed"),
        ({"guided_regex": "\ud800"}, "no lone surrogates"),
    ],
)
def test_what_is_wrong_is_refused_by_name(mapping: dict[str, Any], said: str) -> None:
    assert said in str(refusal(mapping))


@pytest.mark.parametrize(
    "mapping",
    [
        {"guided_regex": "a" * 10_000_000},
        {"guided_json": '{"a": "' + "a" * 10_000_000 + '"}'},
        {"guided_json": {"enum": ["a" * 10_000_000]}},
        {"guided_choice": ["a" * MAX_CHARACTERS]},
    ],
)
def test_megabytes_are_refused_at_once_and_not_repeated(mapping: dict[str, Any]) -> None:
    error = refusal(mapping)
    assert f"at most {MAX_CHARACTERS} characters" in str(error)
    assert len(str(error)) < 300
