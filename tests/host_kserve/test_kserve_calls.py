"""JSON bodies to requests of the v2 protocol, and tensors back to JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.v2 import ModelFacts
from octavo_kserve.calls import as_json, raw_request, read_call

FACTS = ModelFacts("m", decoupled=True)


def read(body: dict[str, Any], streams: bool = True) -> Any:
    """The request that a body is understood as."""
    return read_call(raw_request(body), FACTS, streams)


def test_inputs_and_parameters_stand_side_by_side_or_inside_parameters() -> None:
    flat = read({"text_input": "x", "stream": True, "max_tokens": 3})
    nested = read({"text_input": "x", "parameters": {"stream": True, "max_tokens": 3}})
    assert flat == nested
    assert (flat.prompt, flat.stream, flat.params.max_tokens) == ("x", True, 3)


def test_inputs_that_hold_json_may_be_json() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert read({"messages": messages}) == read({"messages": json.dumps(messages)})
    params = {"max_tokens": 3}
    assert read({"text_input": "x", "sampling_parameters": params}).params.max_tokens == 3


def test_the_id_is_the_clients() -> None:
    assert read({"text_input": "x", "id": 7}).request_id == "7"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"text_input": 5}, "text_input"),
        ({"text_input": ["a", "b"]}, "text_input"),
        ({"text_input": "x", "stream": "yes"}, "stream"),
        ({"text_input": "x", "parameters": [1]}, "parameters"),
        ({}, "text_input"),
    ],
)
def test_a_body_that_is_no_request_is_refused_by_name(body: dict[str, Any], word: str) -> None:
    with pytest.raises(octavo.InvalidRequest, match=word):
        read(body)


@pytest.mark.parametrize("name", ["messages", "of_a_proxy"])
def test_what_is_nested_too_deeply_to_be_written_anew_is_refused(name: str) -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(octavo.InvalidRequest, match="nested"):
        raw_request({"text_input": "x", name: value})


def test_a_route_that_answers_once_does_not_stream() -> None:
    with pytest.raises(octavo.InvalidRequest, match="generate_stream"):
        read({"text_input": "x", "stream": True}, streams=False)


def test_one_element_alone_is_no_list() -> None:
    tensors = {"text_output": np.array([b"a"], dtype=np.object_), "num_output_tokens": np.array([1, 2], np.uint32)}
    assert as_json(tensors) == {"text_output": "a", "num_output_tokens": [1, 2]}
