"""Every input and output of the contract on a real server, by every way in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import triton_clients as clients
import triton_ways as ways
import tritonclient.grpc as grpcclient
from model_repositories import FAST, KIND_MODEL, UNARY, add_fake_model, add_model, killed_afterwards, options_for
from triton_ways import Call, Response
from tritonclient.utils import InferenceServerException

from octavo_triton.launch import TritonServer, find_server

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
NUM_PROMPT_TOKENS = 5
MESSAGES = json.dumps([{"role": "user", "content": "What is the capital of France?"}])
RENDERED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)
FLAGS = (
    *("return_finish_reason", "return_cumulative_logprob", "return_logprobs", "return_num_input_tokens"),
    *("return_num_output_tokens", "return_token_ids", "return_timing"),
)
ALL_FLAGS = dict.fromkeys(FLAGS, True)
ALL_OUTPUTS = {"text_output", *(flag.removeprefix("return_") for flag in FLAGS)}
STREAMED = {"stream": True}
FAKE_CONTEXT = 1024
TOOL_TEMPLATE = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{{ messages[0].content }}"


@pytest.fixture(scope="module")
def server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that forwards every header and has a response cache.

    Its models: the embedded one without streams, a fake one whose template has tools, and one that uses the cache.
    """
    repository = tmp_path_factory.mktemp("contract")
    add_model(repository, "unary", KIND_MODEL + UNARY)
    fake = add_fake_model(repository, "fake", executor=FAST, max_model_len=FAKE_CONTEXT)
    template = json.dumps({"eos_token": "<eos>", "chat_template": TOOL_TEMPLATE})
    (fake / "weights/tokenizer_config.json").write_text(template, encoding="utf-8")
    add_fake_model(repository, "cached", KIND_MODEL + UNARY + "response_cache { enable: true }\n", executor=FAST)
    cache = ("--cache-config=local,size=1048576", f"--cache-directory={find_server(server_dir) / 'caches'}")
    extra = ("--http-header-forward-pattern=.*", *cache)
    with killed_afterwards(options_for(repository, server_dir, load_models=None, extra=extra)) as server:
        yield server


def call(model: str, sampling: dict[str, Any], **inputs: str | bool) -> Call:
    given = {"text_input": PROMPT, "exclude_input_in_output": True, "sampling_parameters": json.dumps(sampling)}
    return Call(model, given | inputs)


def spelled(positions: list[dict[str, Any]]) -> str:
    return "".join(next(iter(position.values()))["decoded_token"] for position in positions)


def check_whole(found: Response, num_tokens: int) -> None:
    """The outputs of one request agree with each other, for every one of its sequences."""
    for text, token_ids, positions, count, total in zip(
        *(found[name] for name in ("text_output", "token_ids", "logprobs", "num_output_tokens", "cumulative_logprob")),
        strict=True,
    ):
        assert spelled(positions) == text
        assert [int(next(iter(position))) for position in positions] == token_ids
        assert len(token_ids) == count <= num_tokens
        assert sum(next(iter(position.values()))["logprob"] for position in positions) == pytest.approx(total, abs=1e-3)


Way = Callable[[TritonServer, Call], list[Response]]
DECOUPLED: dict[str, tuple[Way, dict[str, bool]]] = {
    "grpc stream": (ways.over_grpc_stream, STREAMED),
    "grpc stream, one response": (ways.over_grpc_stream, {}),
    "grpc aio": (ways.over_grpc_aio, STREAMED),
    "generate": (ways.over_generate, {}),
    "generate_stream": (ways.over_generate_stream, STREAMED),
}
NOT_DECOUPLED: dict[str, Way] = {"http": ways.over_http, "grpc": ways.over_grpc, "generate": ways.over_generate}


@pytest.fixture(scope="module")
def expected(triton_server: TritonServer) -> str:
    return clients.text_of(triton_server, PROMPT, max_tokens=16)


def check_greedy_outputs(responses: list[Response], expected: str) -> None:
    assert all(response.keys() == ALL_OUTPUTS for response in responses)
    assert all(response["num_input_tokens"] == [NUM_PROMPT_TOKENS] for response in responses)
    assert [response["finish_reason"] for response in responses[:-1]] == [["None"]] * (len(responses) - 1)
    found = ways.whole(responses)
    assert (found["text_output"], found["finish_reason"]) == ([expected], ["length"])
    assert found["num_output_tokens"] == [16]
    check_whole(found, 16)
    assert all(2 <= len(position) <= 3 for position in found["logprobs"][0])
    assert all(next(iter(position.values()))["rank"] == 1 for position in found["logprobs"][0])
    timing = json.loads(found["timing"][0])
    assert 0 < timing["time_to_first_token_s"] <= timing["e2e_s"] < clients.WAIT_S


SAMPLING = {"temperature": 0, "max_tokens": 16, "logprobs": 2}


@pytest.mark.parametrize("name", DECOUPLED)
def test_all_outputs_come_by_every_way_into_a_decoupled_model(
    triton_server: TritonServer, expected: str, name: str
) -> None:
    way, mode = DECOUPLED[name]
    responses = way(triton_server, call("smollm2", SAMPLING, **mode, **ALL_FLAGS))
    check_greedy_outputs(responses, expected)
    assert (len(responses) > 1) == bool(mode)


@pytest.mark.parametrize("name", NOT_DECOUPLED)
def test_all_outputs_come_by_every_way_into_a_model_with_one_response(
    server: TritonServer, expected: str, name: str
) -> None:
    check_greedy_outputs(NOT_DECOUPLED[name](server, call("unary", SAMPLING, **ALL_FLAGS)), expected)


@pytest.mark.parametrize("name", DECOUPLED)
def test_without_flags_only_text_comes(triton_server: TritonServer, name: str) -> None:
    way, mode = DECOUPLED[name]
    responses = way(triton_server, call("smollm2", SAMPLING, **mode))
    assert {frozenset(response) for response in responses} == {frozenset({"text_output"})}


def test_an_output_that_was_not_requested_is_not_sent_whatever_its_flag_says(
    triton_server: TritonServer, server: TritonServer
) -> None:
    inputs = call("smollm2", SAMPLING, **ALL_FLAGS, **STREAMED).inputs
    for outputs in (("text_output",), ("token_ids", "finish_reason")):
        responses = ways.over_grpc_stream(triton_server, Call("smollm2", inputs, outputs=outputs))
        assert all(response.keys() == set(outputs) for response in responses)
    unary = Call("unary", call("unary", SAMPLING, return_timing=True).inputs, outputs=("timing", "text_output"))
    assert ways.over_http(server, unary)[0].keys() == {"timing", "text_output"}


RANDOM = {"temperature": 1.8, "seed": 11, "n": 4, "max_tokens": 40, "logprobs": 1}


@pytest.mark.parametrize("stop", [{}, {"stop": ["e", "  "], "min_tokens": 4}, {"stop": [" the"], "ignore_eos": True}])
def test_n_sequences_agree_in_all_outputs_and_streaming_changes_nothing(
    triton_server: TritonServer, stop: dict[str, Any]
) -> None:
    streamed = ways.whole(ways.over_grpc_stream(triton_server, call("smollm2", RANDOM | stop, **STREAMED, **ALL_FLAGS)))
    at_once = ways.whole(ways.over_generate(triton_server, call("smollm2", RANDOM | stop, **ALL_FLAGS)))
    check_whole(streamed, RANDOM["max_tokens"])
    assert len(set(streamed["text_output"])) == RANDOM["n"]
    for name in ALL_OUTPUTS - {"timing", "cumulative_logprob"}:
        assert streamed[name] == at_once[name], name
    assert streamed["cumulative_logprob"] == pytest.approx(at_once["cumulative_logprob"], rel=1e-4)


def test_logprobs_that_were_not_asked_for_are_null_and_their_sum_is_there_all_the_same(
    triton_server: TritonServer, expected: str
) -> None:
    sampling = {"temperature": 0, "max_tokens": 16}
    asked = ways.whole(ways.over_generate(triton_server, call("smollm2", sampling | {"logprobs": 0}, **ALL_FLAGS)))
    bare = ways.whole(ways.over_grpc_stream(triton_server, call("smollm2", sampling, **STREAMED, **ALL_FLAGS)))
    assert bare["logprobs"] == [None]
    assert bare["cumulative_logprob"] == pytest.approx(asked["cumulative_logprob"], rel=1e-4)
    assert bare["text_output"] == [expected]


def test_parameters_may_be_typed_or_strings_in_either_place_and_headers_among_them_are_ignored(
    server: TritonServer,
) -> None:
    inputs = {"text_input": PROMPT, "exclude_input_in_output": True}
    sampling = {"max_tokens": 6, "temperature": "0.7", "seed": 5, "ignore_eos": True, "cache_salt": "tenant"}
    by_json = ways.over_generate(server, Call("unary", inputs | {"sampling_parameters": json.dumps(sampling)}))
    headers = {"traceparent": "00-aa-bb-01", "x-request-id": "7"}
    strings = {name: str(value) for name, value in sampling.items()}
    for way in (ways.over_http, ways.over_grpc, ways.over_generate):
        for parameters in (sampling, strings):
            assert way(server, Call("unary", inputs, parameters, headers=headers)) == by_json


def test_the_nested_parameters_of_the_generate_endpoint_are_understood(
    triton_server: TritonServer, expected: str
) -> None:
    body = {"text_input": PROMPT, "parameters": {"stream": False, "temperature": 0, "max_tokens": 16}}
    assert clients.generate(triton_server, body)[1]["text_output"] == PROMPT + expected


def test_messages_are_the_prompt_that_the_template_makes_of_them(triton_server: TritonServer) -> None:
    sampling = {"temperature": 0, "max_tokens": 30}
    chat = call("smollm2", sampling, text_input="", messages=MESSAGES, **ALL_FLAGS)
    plain = call("smollm2", sampling, text_input=RENDERED, **ALL_FLAGS)
    by_messages, by_text = (ways.whole(ways.over_generate(triton_server, each)) for each in (chat, plain))
    for name in ("text_output", "token_ids", "num_input_tokens", "finish_reason"):
        assert by_messages[name] == by_text[name], name
    streamed = ways.over_grpc_aio(
        triton_server, call("smollm2", sampling, text_input="", messages=MESSAGES, **STREAMED)
    )
    assert ways.whole(streamed)["text_output"] == by_text["text_output"]


def test_an_echo_before_messages_is_the_text_as_given(server: TritonServer) -> None:
    def text(**inputs: str | bool) -> str:
        given = {"messages": MESSAGES, "sampling_parameters": '{"max_tokens": 5, "seed": 1}'} | inputs
        return str(ways.over_generate(server, Call("fake", given))[0]["text_output"][0])

    completion = text(text_input="", exclude_input_in_output=True)
    assert len(completion) == 5
    assert text(exclude_input_in_output=True) == completion
    assert text(text_input="") == completion
    assert text(text_input="before: ") == "before: " + completion


def test_a_chat_goes_on_to_the_end_of_the_context_unless_told_otherwise(server: TritonServer) -> None:
    inputs = {"text_input": "", "messages": MESSAGES} | ALL_FLAGS
    found = ways.whole(ways.over_generate(server, Call("fake", inputs)))
    assert found["num_output_tokens"][0] + found["num_input_tokens"][0] == FAKE_CONTEXT
    plain = ways.whole(ways.over_generate(server, Call("fake", {"text_input": "a"} | ALL_FLAGS)))
    assert plain["num_output_tokens"] == [16]


def test_tools_reach_the_template(server: TritonServer) -> None:
    tools = json.dumps([{"type": "function", "function": {"name": name}} for name in ("look", "jump")])
    sampling = json.dumps({"max_tokens": 5, "seed": 1})
    inputs = {"text_input": "", "messages": '[{"role": "user", "content": "go"}]', "sampling_parameters": sampling}
    with_tools = ways.over_generate(server, Call("fake", inputs | {"tools": tools}))
    rendered = {"text_input": "[look][jump]go", "exclude_input_in_output": True, "sampling_parameters": sampling}
    assert with_tools == ways.over_generate(server, Call("fake", rendered))
    assert with_tools != ways.over_generate(server, Call("fake", inputs))


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "embedding": ({"embedding_request": '{"input": "a"}'}, "Model smollm2 does not support 'embed' request"),
    "image": ({"image": "aGVsbG8="}, "image: '1 of them' is not allowed; expected none: this model reads text only"),
    "tools without messages": ({"tools": "[]"}, "tools: [] is not allowed; expected none without `messages`"),
    "tools of a wrong shape": ({"messages": MESSAGES, "tools": "[{}]"}, "tools[0]: {} is not allowed"),
    "messages of a wrong shape": ({"messages": '[{"role": 5}]'}, "messages[0].role: 5 is not allowed"),
    "no messages": ({"messages": "[]"}, "messages: [] is not allowed"),
    "LoRA": ({"lora_name": "a"}, "LoRA feature is not enabled."),
    "structured output": ({"response_format": '{"type": "yaml"}'}, "response_format: {'type': 'yaml'} is not allowed"),
    "no structured output": ({"sampling_parameters": '{"structured_outputs": "{}"}'}, "expected exactly one of json"),
    "no regular expression": ({"sampling_parameters": '{"guided_regex": "("}'}, "guided_regex: '(' is not allowed"),
    "beam search": ({"use_beam_search": True}, "use_beam_search: True is not allowed"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_line_that_names_what_is_wrong(triton_server: TritonServer, name: str) -> None:
    change, said = REFUSALS[name]
    status, answer = clients.generate(triton_server, {"text_input": PROMPT} | change)
    assert status == 400
    assert answer["error"].startswith("Error generating stream: ")
    assert said in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("way", [ways.over_http, ways.over_grpc])
def test_a_model_that_is_not_decoupled_refuses_to_stream(server: TritonServer, way: Way) -> None:
    with pytest.raises(InferenceServerException, match="decoupled: false"):
        way(server, call("unary", SAMPLING, **STREAMED))


def test_the_response_cache_answers_a_request_that_was_answered_before(server: TritonServer) -> None:
    """Its key is made of the inputs; request parameters are not among them."""

    def counts() -> dict[str, float]:
        lines = (line for line in clients.metric_lines(server) if line[1].get("model") == "cached")
        return {name: value for name, _, value in lines if name.startswith("nv_cache_num_")}

    calls = [call("cached", SAMPLING | {"max_tokens": count}, **ALL_FLAGS) for count in (9, 9, 5)]
    first, again, other = (ways.over_grpc(server, each) for each in calls)
    # Its timing too, which a second computation would not repeat.
    assert again == first
    assert [found[0]["num_output_tokens"] for found in (first, other)] == [[9], [5]]
    assert counts() == {"nv_cache_num_hits_per_model": 1, "nv_cache_num_misses_per_model": 2}


CODES: dict[str, tuple[dict[str, Any], int | None, str]] = {
    "INVALID_ARGUMENT": ({"temperature": -1}, None, "temperature: -1"),
    "UNAVAILABLE": ({"max_tokens": 8000, "ignore_eos": True}, 1000, "Request timeout expired"),
}


@pytest.mark.parametrize("code", CODES)
def test_a_grpc_stream_carries_real_codes_when_its_header_asks_for_them(server: TritonServer, code: str) -> None:
    parameters, timeout_us, said = CODES[code]
    inputs, headers = {"text_input": PROMPT} | STREAMED, {"triton_grpc_error": "true"}
    request = Call("fake", inputs, parameters, headers=headers, timeout_us=timeout_us)
    with pytest.raises(InferenceServerException, match=said) as caught:
        ways.over_grpc_stream(server, request)
    assert code in str(caught.value.status())


def test_grpc_without_a_stream_carries_real_codes_always(server: TritonServer) -> None:
    with pytest.raises(InferenceServerException, match="temperature: -1") as caught:
        ways.over_grpc(server, call("unary", {"temperature": -1}))
    assert "INVALID_ARGUMENT" in str(caught.value.status())


def test_bad_requests_among_good_ones_of_one_stream_fail_alone(triton_server: TritonServer, expected: str) -> None:
    good, bad = call("smollm2", SAMPLING).inputs, call("smollm2", {"temperature": -1}).inputs
    with clients.grpc_stream(triton_server) as (client, next_answer):
        for i in range(8):
            inputs = clients.tensors_of(grpcclient, bad if i % 2 else good)
            client.async_stream_infer("smollm2", inputs, request_id=str(i))
        answers = [next_answer() for _ in range(8)]
    texts = [result.as_numpy("text_output")[0].decode() for result, error in answers if error is None]
    errors = [str(error) for _, error in answers if error is not None]
    assert texts == [expected] * 4
    assert len(errors) == 4 and all("temperature: -1 is not allowed" in error for error in errors)
