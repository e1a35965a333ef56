"""Requests off the wire: every input of the contract, both places of the parameters, and every refusal."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from v2.wire import ALL_OUTPUTS, decode

from octavo import ChatPrompt, InvalidRequest, SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.v2.request_codec import ModelFacts, _warn_of_unknown
from octavo.v2.tensors import INPUTS, OUTPUTS, RETURN_FLAGS

MESSAGES = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "look"}}]
WITH_LORA = ModelFacts("smol", True, ("b", "a"))


@pytest.fixture
def unknown_names() -> Iterator[None]:
    """Nothing has been warned of yet."""
    _warn_of_unknown.cache_clear()
    yield
    _warn_of_unknown.cache_clear()


def refusal(**request: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(**request)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_the_inputs_are_the_contracts() -> None:
    types = {spec.name: (spec.data_type, spec.dims) for spec in INPUTS}
    flags = "stream exclude_input_in_output return_finish_reason return_cumulative_logprob return_logprobs"
    flags += " return_num_input_tokens return_num_output_tokens return_token_ids return_timing"
    texts = "text_input sampling_parameters embedding_request messages tools response_format"
    expected = dict.fromkeys(flags.split(), ("TYPE_BOOL", (1,))) | dict.fromkeys(texts.split(), ("TYPE_STRING", (1,)))
    assert types == expected | {"image": ("TYPE_STRING", (-1,))}
    assert [spec.name for spec in INPUTS if not spec.optional] == ["text_input"]


def test_the_outputs_are_the_contracts() -> None:
    strings = dict.fromkeys(("text_output", "finish_reason", "logprobs", "token_ids"), ("TYPE_STRING", (-1,)))
    assert {spec.name: (spec.data_type, spec.dims) for spec in OUTPUTS} == strings | {
        "cumulative_logprob": ("TYPE_FP32", (-1,)),
        "num_input_tokens": ("TYPE_UINT32", (1,)),
        "num_output_tokens": ("TYPE_UINT32", (-1,)),
        "timing": ("TYPE_STRING", (1,)),
    }


def test_text_input_alone_is_a_whole_request_with_default_sampling() -> None:
    request = decode()
    assert (request.prompt, request.params, request.stream) == ("hello", SamplingParams(), False)
    assert (request.priority, request.cache_salt, request.deadline_s) == (0, "", None)


def test_sampling_parameters_are_read_from_the_json_input() -> None:
    request = decode(sampling_parameters='{"max_tokens": "7", "temperature": 0, "stop": ["a", "b"], "_x": 1}')
    assert request.params == SamplingParams(max_tokens=7, temperature=0, stop=("a", "b"))


def test_without_the_input_the_requests_parameters_are_the_sampling_parameters() -> None:
    assert decode({"max_tokens": 7, "top_p": "0.5"}).params == SamplingParams(max_tokens=7, top_p=0.5)
    assert decode({"ignore_eos": "true"}).params == SamplingParams(ignore_eos=True)


def test_the_two_sources_are_never_merged() -> None:
    assert decode({"max_tokens": 7}, sampling_parameters='{"top_k": 3}').params == SamplingParams(top_k=3)
    assert decode({"max_tokens": 7}, sampling_parameters="{}").params == SamplingParams()


def test_what_servers_and_proxies_add_to_the_parameters_is_ignored() -> None:
    forwarded = {"id": "x", "priority": 1, "triton_enable_empty_final_response": True, "_private": 1}
    assert decode({"max_tokens": 7} | forwarded).params == SamplingParams(max_tokens=7)


@pytest.mark.usefixtures("unknown_names")
def test_an_unknown_parameter_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert decode({"x-forwarded-for": "10.0.0.1", "max_tokens": 7}).params.max_tokens == 7
    assert caplog.messages == ["unknown request parameter 'x-forwarded-for' is ignored"]


@pytest.mark.parametrize("header", ["x-seed", "x-temperature", "x-request-priority"])
def test_a_header_that_a_proxy_adds_is_no_slip(header: str) -> None:
    assert decode({header: "1", "max_tokens": 7}).params.max_tokens == 7


@pytest.mark.parametrize(
    ("slip", "right"), [("temprature", "temperature"), ("lora_nam", "lora_name"), ("guided_jsn", "guided_json")]
)
def test_a_slip_in_a_request_parameters_name_is_refused_with_the_right_name(slip: str, right: str) -> None:
    assert refusal(parameters={slip: 0.5}) == f"request parameter: '{slip}' is not allowed; expected {right}"


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"text_input": None}, "text_input: None is not allowed; expected a string: the input is required"),
        ({"text_input": b"ab\xff"}, r"text_input: b'ab\xff' is not allowed; expected UTF-8 text (byte 2 is not)"),
        ({"text_input": 5}, "text_input: 5 is not allowed; expected a string"),
        ({"text_input": np.array([b"a", b"b"], dtype=np.object_)}, "2 elements"),
        ({"stream": 1}, "stream: 1 is not allowed; expected true or false"),
        ({"return_logprobs": "true"}, "return_logprobs: b'true' is not allowed; expected true or false"),
        ({"sampling_parameters": '{"max_tokens": '}, "sampling_parameters: '{\"max_tokens\": ' is not allowed"),
        ({"sampling_parameters": "[1]"}, "sampling_parameters: [1] is not allowed; expected a JSON object"),
        ({"sampling_parameters": "[" * 100_000}, "nested too deeply"),
        ({"sampling_parameters": '{"max_tokens": "many"}'}, "max_tokens: 'many' is not allowed"),
        ({"sampling_parameters": '{"temperature": -1}'}, "temperature: -1 is not allowed"),
        ({"sampling_parameters": '{"temperature": NaN}'}, "temperature: nan is not allowed"),
        ({"sampling_parameters": '{"no_such": 1}'}, "sampling_parameters: 'no_such' is not allowed"),
        ({"sampling_parameters": '{"request_priority": "high"}'}, "request_priority: 'high' is not allowed"),
        ({"sampling_parameters": '{"cache_salt": 5}'}, "cache_salt: 5 is not allowed; expected a string"),
        ({"sampling_parameters": '{"lora_name": 5}'}, "lora_name: 5 is not allowed; expected a string"),
        ({"image": "aGVsbG8="}, "image: '1 of them' is not allowed; expected none: this model reads text only"),
        ({"messages": "[{"}, "messages: '[{' is not allowed; expected JSON"),
        ({"messages": json.dumps(MESSAGES), "tools": "x"}, "tools: 'x' is not allowed; expected JSON"),
        ({"tools": json.dumps(TOOLS)}, "expected none without `messages`"),
        ({"response_format": "json"}, "response_format: 'json' is not allowed; expected JSON"),
        ({"response_format": '{"type": "yaml"}'}, """expected an object like {"type": "json_schema","""),
        ({"response_format": '["text"]'}, """expected an object like {"type": "json_schema","""),
        (
            {"response_format": '{"type": "json_schema", "json_schema": {}}'},
            "response_format.json_schema.schema: None is",
        ),
        (
            {"sampling_parameters": '{"structured_outputs": "{}"}'},
            "structured_outputs: [] is not allowed; expected exactly",
        ),
        (
            {
                "response_format": '{"type": "json_object"}',
                "sampling_parameters": '{"response_format": {"type": "text"}}',
            },
            "expected only one: sampling_parameters has another",
        ),
        (
            {"response_format": '{"type": "json_object"}', "sampling_parameters": '{"guided_regex": "a"}'},
            "nothing here, since",
        ),
    ],
)
def test_a_bad_input_is_named_with_its_value_and_what_is_allowed(inputs: dict[str, Any], text: str) -> None:
    assert text in refusal(**inputs)


@pytest.mark.parametrize("text_input", ["hello", "", None])
def test_an_embedding_is_refused_in_the_contracts_words(text_input: str | None) -> None:
    request = {"text_input": text_input, "embedding_request": '{"input": "hello"}'}
    assert refusal(**request) == "Model smol does not support 'embed' request"


def test_an_image_tensor_without_images_is_none() -> None:
    assert decode(image=np.array([], dtype=np.object_)).prompt == "hello"


@pytest.mark.parametrize(
    "inputs",
    [
        {"response_format": '{"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}'},
        {"sampling_parameters": json.dumps({"structured_outputs": '{"json": {"type": "array"}, "_backend": 1}'})},
        {"sampling_parameters": '{"guided_json": {"type": "array"}}'},
    ],
)
def test_structured_output_may_be_asked_for_in_each_of_its_places(inputs: dict[str, Any]) -> None:
    assert decode(**inputs).params.structured_outputs == StructuredOutputs("json", '{"type":"array"}')


@pytest.mark.parametrize("text_format", ['{"type": "text"}', "null"])
def test_a_response_format_that_asks_for_text_is_accepted(text_format: str) -> None:
    assert decode(response_format=text_format).prompt == "hello"


@pytest.mark.parametrize(
    ("stream", "exclude", "echo"),
    [
        (False, None, "hello"),
        (False, False, "hello"),
        (False, True, ""),
        (None, None, "hello"),
        (True, None, ""),
        (True, True, ""),
    ],
)
def test_the_prompt_is_echoed_only_in_one_response_mode(stream: bool | None, exclude: bool | None, echo: str) -> None:
    assert decode(stream=stream, exclude_input_in_output=exclude).echo == echo


def test_an_echo_while_streaming_is_refused_in_the_contracts_words() -> None:
    text = "When streaming, `exclude_input_in_output` = False is not allowed."
    assert refusal(stream=True, exclude_input_in_output=False) == text


def test_a_model_that_is_not_decoupled_refuses_to_stream() -> None:
    unary = ModelFacts("smol", decoupled=False)
    assert decode(facts=unary).stream is False
    assert "decoupled: false" in refusal(facts=unary, stream=True)


@pytest.mark.parametrize("text_input", ["", None])
def test_messages_stand_in_for_the_text(text_input: str | None) -> None:
    request = decode(text_input=text_input, messages=json.dumps(MESSAGES), tools=json.dumps(TOOLS))
    assert request.prompt == ChatPrompt(MESSAGES, TOOLS)
    assert request.echo == ""


def test_beside_messages_the_text_is_only_echoed() -> None:
    request = decode(text_input="hello", messages=json.dumps(MESSAGES), tools="null")
    assert (request.prompt, request.echo) == (ChatPrompt(MESSAGES), "hello")


def test_a_chat_may_go_on_to_the_end_of_the_context_and_a_completion_has_16_tokens() -> None:
    chat = json.dumps(MESSAGES)
    assert decode().params.max_tokens == 16
    assert decode(messages=chat).params.max_tokens is None
    assert decode(messages=chat, sampling_parameters='{"max_tokens": null, "min_tokens": 20}').params.max_tokens is None
    assert decode({"max_tokens": 5}, messages=chat).params.max_tokens == 5


def test_the_deadline_comes_from_the_servers_field_or_from_the_timeout_parameter() -> None:
    assert decode({"timeout": None}).deadline_s is None
    assert decode(timeout_us=1_500_000).deadline_s == 1.5
    assert decode({"timeout": "250000"}).deadline_s == 0.25
    assert decode(timeout_us=1).deadline_s == 0.001
    for bad in (10**400, -1, "soon"):
        assert refusal(parameters={"timeout": bad}).startswith("timeout: ")


PLACES = ["parameters", "sampling_parameters", "parameters beside sampling_parameters"]


def in_place(place: str, name: str, value: object) -> dict[str, Any]:
    if place == "sampling_parameters":
        return {"sampling_parameters": json.dumps({name: value})}
    return {"parameters": {name: value}} | ({"sampling_parameters": "{}"} if "beside" in place else {})


@pytest.mark.parametrize("place", PLACES)
def test_what_is_ours_beside_the_sampling_parameters_may_stand_in_either_place(place: str) -> None:
    assert decode(**in_place(place, "request_priority", "3")).priority == 3
    assert decode(**in_place(place, "cache_salt", "tenant")).cache_salt == "tenant"
    assert refusal(facts=WITH_LORA, **in_place(place, "lora_name", "c")).startswith("LoRA c is not supported")


def test_of_two_priorities_that_of_the_sampling_parameters_counts() -> None:
    assert decode({"request_priority": 5}, sampling_parameters='{"request_priority": 0}').priority == 0


def test_lora_is_refused_in_the_contracts_words() -> None:
    assert refusal(parameters={"lora_name": "a"}) == "LoRA feature is not enabled."
    text = "LoRA c is not supported, we currently support ['b', 'a']"
    assert refusal(parameters={"lora_name": "c"}, facts=WITH_LORA) == text
    assert len(refusal(parameters={"lora_name": "c" * 10_000}, facts=WITH_LORA)) < 200


@pytest.mark.parametrize(("flag", "output"), RETURN_FLAGS.items())
def test_an_output_is_sent_when_its_flag_and_the_request_ask_for_it(flag: str, output: str) -> None:
    assert decode(**{flag: True}).outputs == {"text_output", output}
    assert decode(**{flag: False}).outputs == {"text_output"}
    assert decode(outputs=frozenset({output}), **{flag: True}).outputs == {output}
    assert decode(outputs=frozenset({"text_output"}), **{flag: True}).outputs == {"text_output"}


def test_without_flags_only_the_text_is_sent() -> None:
    assert decode(outputs=ALL_OUTPUTS).outputs == {"text_output"}


def test_a_cumulative_logprob_alone_is_computed_without_making_logprobs_asked_for() -> None:
    request = decode(return_cumulative_logprob=True, return_logprobs=True)
    assert (request.params.logprobs, request.logprobs_asked) == (0, False)
    request = decode({"logprobs": 3}, return_cumulative_logprob=True)
    assert (request.params.logprobs, request.logprobs_asked) == (3, True)
    assert decode(return_logprobs=True).params.logprobs is None
