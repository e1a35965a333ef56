"""Responses onto the wire: every output of the contract, response by response."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from v2.wire import decode, output

from octavo import CompletionOutput, FinishReason, Logprob, Timing
from octavo.v2.response_codec import LOWEST_LOGPROB, ResponseEncoder
from octavo.v2.tensors import RETURN_FLAGS

ALL_FLAGS = dict.fromkeys(RETURN_FLAGS, True)


def encoder(sampling: dict[str, Any] | None = None, **inputs: Any) -> ResponseEncoder:
    return ResponseEncoder(decode(sampling_parameters=json.dumps(sampling or {}), **{"stream": True} | inputs))


def completion(text: str = "", index: int = 0, **fields: Any) -> CompletionOutput:
    return CompletionOutput(index=index, text=text, **fields)


def position(token_id: int, logprob: float = -0.5, text: str = "a") -> dict[int, Logprob]:
    return {token_id: Logprob(logprob, 1, text)}


def test_only_the_outputs_that_were_asked_for_are_made() -> None:
    assert encoder(outputs=frozenset()).encode(output(completion("x"))) == {}
    assert encoder().encode(output(completion("x"))).keys() == {"text_output"}


def test_all_outputs_stand_on_every_response() -> None:
    encode = encoder(**ALL_FLAGS).encode
    for each in (output(completion("x")), output(completion(finish_reason=FinishReason.STOP), finished=True)):
        assert encode(each).keys() == {"text_output", *RETURN_FLAGS.values()}


def test_every_response_has_one_element_for_each_of_the_n_sequences() -> None:
    tensors = encoder({"n": 3}, **ALL_FLAGS).encode(output(completion("é", index=1, token_ids=[7, 8])))
    assert tensors["text_output"].tolist() == [b"", "é".encode(), b""]
    assert tensors["num_output_tokens"].tolist() == [0, 2, 0]
    assert tensors["token_ids"].tolist() == [b"[]", b"[7, 8]", b"[]"]
    assert tensors["logprobs"].tolist() == [b"null"] * 3
    assert tensors["finish_reason"].tolist() == [b"None"] * 3
    assert tensors["cumulative_logprob"].tolist() == [0.0] * 3
    assert tensors["num_input_tokens"].tolist() == [5]


def test_the_types_are_the_contracts() -> None:
    tensors = encoder(**ALL_FLAGS).encode(output(completion("x")))
    assert tensors["cumulative_logprob"].dtype == np.float32
    assert tensors["num_input_tokens"].dtype == tensors["num_output_tokens"].dtype == np.uint32
    for name in ("text_output", "finish_reason", "logprobs", "token_ids", "timing"):
        assert tensors[name].dtype == np.object_
        assert isinstance(tensors[name][0], bytes)


def test_the_echo_stands_before_each_sequence() -> None:
    encode = encoder({"n": 2}, stream=False).encode
    texts = encode(output(completion(" a"), completion(" b", index=1), finished=True))["text_output"]
    assert texts.tolist() == [b"hello a", b"hello b"]


def test_how_a_sequence_ended_is_said_again_while_others_go_on() -> None:
    encode = encoder({"n": 2}, return_finish_reason=True).encode
    said = [
        encode(each)["finish_reason"].tolist()
        for each in (
            output(completion("a"), completion("b", index=1)),
            output(completion("a", finish_reason=FinishReason.STOP)),
            output(completion("b", index=1)),
            output(completion("b", index=1, finish_reason=FinishReason.LENGTH), finished=True),
        )
    ]
    assert said == [[b"None", b"None"], [b"stop", b"None"], [b"stop", b"None"], [b"stop", b"length"]]


def test_a_cumulative_logprob_stays_where_nothing_is_new() -> None:
    encode = encoder({"n": 2}, return_cumulative_logprob=True).encode
    first = output(completion("a", cumulative_logprob=-0.5), completion("b", index=1, cumulative_logprob=-1.0))
    assert encode(first)["cumulative_logprob"].tolist() == [-0.5, -1.0]
    later = output(completion("b", index=1, cumulative_logprob=-1.5))
    assert encode(later)["cumulative_logprob"].tolist() == [-0.5, -1.5]


def test_logprobs_are_a_json_list_of_what_is_new() -> None:
    encode = encoder({"logprobs": 1}, return_logprobs=True).encode
    new = [position(7, text="é") | {9: Logprob(-2.0, 3, "b")}]
    (text,) = encode(output(completion("é", token_ids=[7], logprobs=new)))["logprobs"]
    assert json.loads(text) == [
        {
            "7": {"logprob": -0.5, "rank": 1, "decoded_token": "é"},
            "9": {"logprob": -2.0, "rank": 3, "decoded_token": "b"},
        }
    ]
    assert encode(output(completion("x")))["logprobs"].tolist() == [b"[]"]


def test_logprobs_that_only_their_sum_needed_are_null() -> None:
    encode = encoder(return_logprobs=True, return_cumulative_logprob=True).encode
    delta = completion("a", token_ids=[7], logprobs=[position(7)], cumulative_logprob=-0.5)
    assert encode(output(delta))["logprobs"].tolist() == [b"null"]


def test_what_is_impossible_is_still_valid_json() -> None:
    encode = encoder({"logprobs": 0}, return_logprobs=True, return_cumulative_logprob=True).encode
    delta = completion("a", logprobs=[position(7, -math.inf, "\ud800")], cumulative_logprob=-math.inf)
    tensors = encode(output(delta))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (found,) = json.loads(tensors["logprobs"][0], parse_constant=refuse)
    assert found["7"] == {"logprob": LOWEST_LOGPROB, "rank": 1, "decoded_token": "\ud800"}
    assert np.isfinite(tensors["cumulative_logprob"]).all()


@pytest.mark.parametrize(
    ("flags", "delta", "news"),
    [
        ([], completion(), False),
        ([], completion("x"), True),
        ([], completion(finish_reason=FinishReason.STOP), True),
        ([], completion(token_ids=[1], logprobs=[position(1)]), False),
        (["return_finish_reason", "return_num_input_tokens", "return_timing"], completion(token_ids=[1]), False),
        (["return_token_ids"], completion(token_ids=[1]), True),
        (["return_num_output_tokens"], completion(token_ids=[1]), True),
        (["return_cumulative_logprob"], completion(token_ids=[1]), True),
        (["return_logprobs"], completion(token_ids=[1], logprobs=[]), False),
        (["return_logprobs"], completion(token_ids=[1], logprobs=[position(1)]), True),
        (["return_token_ids"], completion(), False),
    ],
)
def test_a_delta_is_news_if_it_shows_in_an_output_that_was_asked_for(
    flags: list[str], delta: CompletionOutput, news: bool
) -> None:
    assert encoder(**dict.fromkeys(flags, True)).has_news(output(delta)) is news


def test_the_end_is_always_news() -> None:
    assert encoder().has_news(output(finished=True))


def test_timing_is_a_json_object_of_seconds() -> None:
    encode = encoder(return_timing=True).encode
    assert set(json.loads(encode(output(completion("x")))["timing"][0]).values()) == {None}
    timed = output(completion("x"))
    timed.timing = Timing(queue_s=0.1234567, prefill_s=0.5, decode_s=None, time_to_first_token_s=0.75, e2e_s=None)
    assert json.loads(encode(timed)["timing"][0]) == {
        "queue_s": 0.123457,
        "prefill_s": 0.5,
        "decode_s": None,
        "time_to_first_token_s": 0.75,
        "e2e_s": None,
    }
