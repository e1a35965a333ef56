"""The wire: request tensors and parameters in, output tensors out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from octavo import CompletionOutput, FinishReason, InvalidRequest, RequestOutput, SamplingParams, Usage
from octavo_triton.codec import OUTPUTS, GenerateRequest, RawRequest, decode_request, encode_output, has_news

ALL_OUTPUTS = frozenset(spec.name for spec in OUTPUTS)


def decode(
    parameters: dict[str, Any] | None = None,
    timeout_us: int = 0,
    decoupled: bool = True,
    outputs: frozenset[str] = ALL_OUTPUTS,
    **inputs: Any,
) -> GenerateRequest:
    tensors = {name: as_array(value) for name, value in ({"text_input": "hello"} | inputs).items() if value is not None}
    raw = RawRequest(
        tensors=tensors,
        parameters=json.dumps(parameters or {}),
        request_id="r1",
        timeout_us=timeout_us,
        outputs=outputs,
    )
    return decode_request(raw, decoupled)


def as_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, str):
        return np.array([value.encode()], dtype=np.object_)
    return np.array([value], dtype=np.object_ if isinstance(value, bytes) else None)


def completion(text: str, index: int = 0, finish_reason: FinishReason | None = None) -> CompletionOutput:
    return CompletionOutput(index=index, text=text, finish_reason=finish_reason)


def output(*completions: CompletionOutput, finished: bool = False) -> RequestOutput:
    return RequestOutput(
        request_id="r1",
        prompt=None,
        prompt_token_ids=[],
        outputs=list(completions),
        usage=Usage(1, 1, 0),
        finished=finished,
    )


def test_text_input_alone_is_a_whole_request_with_default_sampling() -> None:
    request = decode()
    assert (request.prompt, request.params, request.stream) == ("hello", SamplingParams(), False)


def test_sampling_parameters_are_read_from_the_json_input() -> None:
    request = decode(sampling_parameters='{"max_tokens": "7", "temperature": 0, "stop": ["a", "b"]}')
    assert request.params == SamplingParams(max_tokens=7, temperature=0, stop=("a", "b"))


def test_without_the_input_the_requests_parameters_are_the_sampling_parameters() -> None:
    assert decode({"max_tokens": 7, "top_p": "0.5"}).params == SamplingParams(max_tokens=7, top_p=0.5)


def test_the_two_sources_are_never_merged() -> None:
    assert decode({"max_tokens": 7}, sampling_parameters='{"top_k": 3}').params == SamplingParams(top_k=3)


def test_what_servers_and_proxies_add_to_the_parameters_is_ignored() -> None:
    forwarded = {"id": "x", "priority": 1, "triton_enable_empty_final_response": True, "traceparent": "00-a-b-01"}
    assert decode({"max_tokens": 7} | forwarded).params == SamplingParams(max_tokens=7)


def test_a_slip_in_a_request_parameters_name_is_refused_with_the_right_name() -> None:
    with pytest.raises(InvalidRequest, match=r"'temprature' is not allowed; expected temperature"):
        decode({"temprature": 0.5})


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"text_input": None}, "text_input: None is not allowed; expected a string: the input is required"),
        ({"text_input": b"ab\xff"}, r"text_input: b'ab\xff' is not allowed; expected UTF-8 text (byte 2 is not)"),
        ({"text_input": 5}, "text_input: 5 is not allowed; expected a string"),
        ({"stream": 1}, "stream: 1 is not allowed; expected true or false"),
        ({"sampling_parameters": '{"max_tokens": '}, "sampling_parameters: '{\"max_tokens\": ' is not allowed"),
        ({"sampling_parameters": "[1]"}, "sampling_parameters: [1] is not allowed; expected a JSON object"),
        ({"sampling_parameters": "[" * 100_000}, "nested too deeply"),
        ({"sampling_parameters": '{"max_tokens": "many"}'}, "max_tokens: 'many' is not allowed"),
        ({"sampling_parameters": '{"temperature": -1}'}, "temperature: -1 is not allowed"),
        ({"sampling_parameters": '{"temperature": NaN}'}, "temperature: nan is not allowed"),
        ({"sampling_parameters": '{"no_such": 1}'}, "sampling_parameters: 'no_such' is not allowed"),
        ({"sampling_parameters": '{"request_priority": "high"}'}, "request_priority: 'high' is not allowed"),
    ],
)
def test_a_bad_input_is_named_with_its_value_and_what_is_allowed(inputs: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(**inputs)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_input_of_several_elements_is_refused() -> None:
    raw = RawRequest(
        tensors={"text_input": np.array([b"a", b"b"], dtype=np.object_)},
        parameters="{}",
        request_id="",
        timeout_us=0,
        outputs=ALL_OUTPUTS,
    )
    with pytest.raises(InvalidRequest, match="2 elements"):
        decode_request(raw, decoupled=True)


@pytest.mark.parametrize(
    ("stream", "exclude", "echo"),
    [(False, None, True), (False, False, True), (False, True, False), (True, None, False), (True, True, False)],
)
def test_the_prompt_is_echoed_only_in_one_response_mode(stream: bool, exclude: bool | None, echo: bool) -> None:
    assert decode(stream=stream, exclude_input_in_output=exclude).echo is echo


def test_an_echo_while_streaming_is_refused_in_the_contracts_words() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(stream=True, exclude_input_in_output=False)
    assert str(caught.value) == "When streaming, `exclude_input_in_output` = False is not allowed."


def test_a_model_that_is_not_decoupled_refuses_to_stream() -> None:
    assert decode(decoupled=False).stream is False
    with pytest.raises(InvalidRequest, match="decoupled: false"):
        decode(decoupled=False, stream=True)


def test_the_deadline_comes_from_the_servers_field_or_from_the_timeout_parameter() -> None:
    assert decode().deadline_s is None
    assert decode(timeout_us=1_500_000).deadline_s == 1.5
    assert decode({"timeout": 250_000}).deadline_s == 0.25
    assert decode(timeout_us=1).deadline_s == 0.001
    with pytest.raises(InvalidRequest, match="timeout"):
        decode({"timeout": 10**400})
    with pytest.raises(InvalidRequest, match="timeout"):
        decode({"timeout": -1})


@pytest.mark.parametrize(
    "how", [{"parameters": {"request_priority": "3"}}, {"sampling_parameters": '{"request_priority": 3}'}]
)
def test_request_priority_may_stand_in_either_place(how: dict[str, Any]) -> None:
    assert decode(**how).priority == 3


def test_only_the_outputs_that_were_asked_for_are_made() -> None:
    request = decode(outputs=frozenset())
    assert encode_output(request, output(completion("x"))) == {}


def test_every_response_has_one_text_for_each_of_the_n_sequences() -> None:
    request = decode(sampling_parameters='{"n": 3}', stream=True)
    texts = encode_output(request, output(completion("é", index=1)))["text_output"]
    assert texts.tolist() == [b"", "é".encode(), b""]
    assert texts.dtype == np.object_


def test_the_echo_stands_before_each_sequence() -> None:
    request = decode(sampling_parameters='{"n": 2}')
    texts = encode_output(request, output(completion(" a"), completion(" b", index=1), finished=True))["text_output"]
    assert texts.tolist() == [b"hello a", b"hello b"]


def test_a_delta_without_text_is_no_news_unless_something_ended() -> None:
    assert not has_news(output(completion("")))
    assert has_news(output(completion("x")))
    assert has_news(output(completion("", finish_reason=FinishReason.STOP)))
    assert has_news(output(finished=True))
