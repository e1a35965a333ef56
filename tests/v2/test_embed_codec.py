"""Requests for vectors off the wire, and vectors onto it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from v2.wire import ALL_OUTPUTS, decode, output

from octavo import CompletionOutput, FinishReason, InvalidRequest, PoolingParams
from octavo.v2 import ModelFacts, open_encoder
from octavo.v2.tensors import RETURN_FLAGS

FACTS = ModelFacts("mini", decoupled=True, embeds=True)
VECTOR = np.array([0.1, -2.5, 3e-8], dtype=np.float32)


def embed(asked: Any, **more: Any) -> Any:
    text = asked if isinstance(asked, str) else json.dumps(asked)
    return decode(embedding_request=text, **{"text_input": "", "facts": FACTS} | more)


@pytest.mark.parametrize("value", ["hello", [101, 7, 102]])
def test_an_input_is_a_text_or_token_ids(value: Any) -> None:
    request = embed({"input": value}, timeout_us=2_000_000, parameters={"request_priority": 3, "cache_salt": "s"})
    assert (request.prompt, request.params, request.stream) == (value, PoolingParams(), False)
    assert (request.request_id, request.priority, request.cache_salt, request.deadline_s) == ("r1", 3, "s", 2.0)


@pytest.mark.parametrize("text_input", ["hello", "", None])
def test_what_else_is_there_plays_no_part(text_input: str | None) -> None:
    asked = {"input": "a", "model": "m", "encoding_format": "float"}
    assert embed(asked, text_input=text_input, sampling_parameters="{", stream=True).prompt == "a"


@pytest.mark.parametrize(
    "asked",
    [
        {"dimensions": 8},
        {"dimensions": 8, "pooling_params": None},
        {"pooling_params": {"dimensions": 8}},
        {"pooling_params": {"dimensions": [8]}},
    ],
)
def test_parameters_may_stand_inside_as_clients_of_vllms_backend_write_them(asked: dict[str, Any]) -> None:
    assert embed({"input": "a"} | asked).params == PoolingParams(dimensions=8)


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [
        ("{", "embedding_request"),
        ([], "embedding_request"),
        (None, "embedding_request"),
        ({}, "embedding_request.input"),
        ({"input": ["a", "b"]}, "embedding_request.input"),
        ({"input": []}, "embedding_request.input"),
        ({"input": [1.5]}, "embedding_request.input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "pooling_params": 5}, "embedding_request.pooling_params"),
        ({"input": "a", "pooling_params": {"size": 5}}, "embedding_request.pooling_params"),
        ({"input": "a", "pooling_params": []}, "embedding_request.pooling_params"),
        ({"input": "a", "pooling_params": 0}, "embedding_request.pooling_params"),
        ({"input": "a", "pooling_params": ""}, "embedding_request.pooling_params"),
    ],
)
def test_what_is_wrong_is_named(asked: Any, parameter: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        embed(asked)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize("text", ['{"input": "a"}', "{"])
def test_a_model_that_generates_refuses_in_the_contracts_words(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(embedding_request=text)
    assert str(caught.value) == "Model smol does not support 'embed' request"


def test_a_vector_is_a_list_of_numbers_in_one_text() -> None:
    done = output(CompletionOutput(index=0, finish_reason=FinishReason.STOP), finished=True)
    done.embedding = VECTOR
    encoder = open_encoder(embed({"input": "a"}))
    assert encoder.has_news(done) and not encoder.has_news(output())
    (text,) = encoder.encode(done)["text_output"].tolist()
    assert np.array_equal(np.array(json.loads(text), dtype=np.float32), VECTOR)


def test_only_what_was_asked_for_and_has_a_meaning_is_sent() -> None:
    done = output(CompletionOutput(index=0, finish_reason=FinishReason.STOP), finished=True)
    done.embedding = VECTOR
    tensors = open_encoder(embed({"input": "a"}, **dict.fromkeys(RETURN_FLAGS, True))).encode(done)
    assert tensors.keys() == ALL_OUTPUTS - {"cumulative_logprob", "logprobs", "token_ids"}
    assert tensors["num_input_tokens"].tolist() == [5] and tensors["num_output_tokens"].tolist() == [0]
    assert tensors["num_output_tokens"].dtype == np.uint32 and tensors["finish_reason"].tolist() == [b"stop"]
    assert open_encoder(embed({"input": "a"}, outputs=frozenset())).encode(done) == {}
