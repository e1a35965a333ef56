"""What clients send as sampling parameters: every type it may come in, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import InvalidRequest
from octavo.sampling_params import LOWEST_TEMPERATURE, SamplingParams


def refusal(name: str, value: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams.from_mapping({name: value})
    return caught.value


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ({"temperature": "0.95"}, {"temperature": 0.95}),
        ({"max_tokens": "100"}, {"max_tokens": 100}),
        ({"max_tokens": 100.0}, {"max_tokens": 100}),
        ({"ignore_eos": "True"}, {"ignore_eos": True}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"logit_bias": {"7": "1.5"}}, {"logit_bias": {7: 1.5}}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"temperature": 0.001}, {"temperature": LOWEST_TEMPERATURE}),
        ({"temperature": 1e-6}, {"temperature": 1e-6}),
        ({"seed": str(-(2**63))}, {"seed": -(2**63)}),
        ({"temperature": None, "top_k": None, "stop": None, "max_tokens": None}, {}),
        ({"_backend": 5}, {}),
        ({"logprobs": False}, {}),
        ({"logprobs": "false"}, {}),
    ],
)
def test_values_may_come_as_strings_and_null_means_the_default(sent: dict[str, Any], read: dict[str, Any]) -> None:
    assert SamplingParams.from_mapping(sent) == SamplingParams(**read)


def test_a_caller_may_have_other_defaults() -> None:
    for sent in ({}, {"max_tokens": None}):
        assert SamplingParams.from_mapping(sent, max_tokens=None).max_tokens is None
    assert SamplingParams.from_mapping({"max_tokens": 5}, max_tokens=None).max_tokens == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", "1" * 100),
        ("seed", 2**63),
        ("n", 129),
        ("n", True),
        ("stop", [""]),
        ("stop", ["a"] * 17),
        ("stop", [1]),
        ("stop", ["\ud800"]),
        ("ignore_eos", 1),
        ("logprobs", -2),
        ("logprobs", True),
        ("allowed_token_ids", []),
        ("truncate_prompt_tokens", -2),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    error = refusal(name, value)
    assert error.parameter.startswith(name)
    assert len(str(error)) < 300


def test_an_unknown_key_is_refused_by_name() -> None:
    assert "'no_such' is not allowed; expected one of " in str(refusal("no_such", 1))
    assert "'no_such' is not allowed" in str(refusal("no_such", None))


def test_parameters_that_exclude_each_other_are_refused() -> None:
    for sent in ({"n": 2, "temperature": 0}, {"max_tokens": 5, "min_tokens": 6}):
        with pytest.raises(InvalidRequest):
            SamplingParams.from_mapping(sent)


@pytest.mark.parametrize(
    ("name", "harmless", "asks_for_something"),
    [
        ("best_of", [1, "1", None], 2),
        ("use_beam_search", [False, "false", None], True),
        ("early_stopping", [False, None], True),
        ("length_penalty", [1, 1.0, "1.0"], 0.5),
        ("detokenize", [True, "true", None], False),
        ("spaces_between_special_tokens", [True], False),
        ("output_text_buffer_length", [0], 5),
        ("output_kind", [0, 1, 2, None], 3),
        ("logits_processors", [None, []], ["module:f"]),
        ("extra_args", [None, {}], {"x": 1}),
    ],
)
def test_what_asks_for_nothing_is_accepted_and_anything_else_refused_by_name(
    name: str, harmless: list[object], asks_for_something: object
) -> None:
    for value in harmless:
        assert SamplingParams.from_mapping({name: value}) == SamplingParams()
    assert refusal(name, asks_for_something).parameter == name


def test_json_is_read_and_refused_under_the_callers_name() -> None:
    assert SamplingParams.from_json("x", '{"top_k": 5}').top_k == 5
    for text in ("{", "[]", "5", "[" * 100_000, "1" * 5000):
        with pytest.raises(InvalidRequest) as caught:
            SamplingParams.from_json("--sampling", text)
        assert caught.value.parameter == "--sampling"
