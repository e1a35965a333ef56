"""What a client of the Triton server sees: texts, streams and errors, by curl, plain HTTP and gRPC."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import Any

import pytest
import triton_clients as clients
from tritonclient.utils import InferenceServerException

from octavo_triton.launch import TritonServer
from octavo_triton.server import welcome

PROMPT = "The capital of France is"


@pytest.mark.slow
def test_the_curl_line_that_the_launcher_prints_works_as_it_stands(triton_server: TritonServer) -> None:
    (line,) = [line for line in welcome(triton_server).splitlines() if line.strip().startswith("curl ")]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    events = [json.loads(event.removeprefix("data: ")) for event in done.stdout.split("\n\n") if event]
    assert len(events) > 3
    assert "".join(event["text_output"] for event in events) == clients.text_of(
        triton_server, "Once upon a time", max_tokens=32
    )


@pytest.mark.slow
def test_one_response_and_streams_give_the_same_text_by_every_way_in(triton_server: TritonServer) -> None:
    body = {"text_input": PROMPT, "max_tokens": 24} | clients.GREEDY
    expected = clients.text_of(triton_server, PROMPT, max_tokens=24)
    assert clients.http_stream_text(triton_server, body) == expected
    assert clients.grpc_text(triton_server, PROMPT, stream=True, max_tokens=24) == expected
    assert clients.grpc_text(triton_server, PROMPT, stream=False, max_tokens=24) == expected


@pytest.mark.slow
def test_a_stream_brings_its_text_in_pieces(triton_server: TritonServer) -> None:
    with clients.http_stream(triton_server, {"text_input": PROMPT, "max_tokens": 24} | clients.GREEDY) as events:
        assert len([event["text_output"] for event in events]) > 3


@pytest.mark.slow
def test_the_last_response_with_text_is_the_final_one(triton_server: TritonServer) -> None:
    client = clients.GrpcStream(triton_server, PROMPT, {"max_tokens": 8, "temperature": 0}, stream=True)
    num_with_text = len(list(client))
    client.close()
    assert client.final_flags == [False] * (num_with_text - 1) + [True]


@pytest.mark.slow
def test_the_prompt_comes_back_unless_excluded(triton_server: TritonServer) -> None:
    body = {"text_input": PROMPT, "max_tokens": 4} | clients.GREEDY
    completion = clients.text_of(triton_server, PROMPT, max_tokens=4)
    assert clients.generate(triton_server, body)[1]["text_output"] == PROMPT + completion


@pytest.mark.slow
def test_sampling_parameters_may_be_one_json_text_or_the_requests_parameters(triton_server: TritonServer) -> None:
    text = json.dumps({"max_tokens": 6, "temperature": 0.9, "seed": 5})
    by_json = clients.text_of(triton_server, PROMPT, sampling_parameters=text)
    assert clients.text_of(triton_server, PROMPT, max_tokens=6, temperature=0.9, seed=5) == by_json


@pytest.mark.slow
def test_n_completions_come_in_one_tensor(triton_server: TritonServer) -> None:
    text = json.dumps({"n": 3, "max_tokens": 4, "seed": 1})
    texts: Any = clients.generate(triton_server, {"text_input": PROMPT, "sampling_parameters": text})[1]["text_output"]
    assert len(texts) == 3
    assert all(text.startswith(PROMPT) for text in texts)


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown sampling parameter": ({"sampling_parameters": '{"no_such": 1}'}, "'no_such' is not allowed"),
    "slip in a parameter's name": ({"max_token": 5}, "'max_token' is not allowed; expected max_tokens"),
    "value out of range": ({"temperature": -1}, "temperature: -1 is not allowed; expected a number from 0 to 2"),
    "value of a wrong type": ({"max_tokens": "many"}, "max_tokens: 'many' is not allowed"),
    "broken JSON": ({"sampling_parameters": '{"max_tokens": '}, "sampling_parameters: '{\"max_tokens\": ' is not"),
    "JSON of a wrong type": ({"sampling_parameters": "[]"}, "sampling_parameters: [] is not allowed"),
    "empty prompt": ({"text_input": ""}, "prompt: '' is not allowed"),
    "prompt longer than the context": ({"text_input": "one two " * 5000}, "8192"),
    "no prompt": ({"text_input": None, "stream": False}, "text_input: None is not allowed"),
    "echo of a stream": (
        {"stream": True, "exclude_input_in_output": False},
        "When streaming, `exclude_input_in_output",
    ),
}


@pytest.mark.slow
def test_bad_requests_get_one_line_each_and_disturb_nobody(triton_server: TritonServer) -> None:
    expected = clients.text_of(triton_server, "Once upon a time", max_tokens=150, ignore_eos=True)
    texts: list[str] = []
    other = threading.Thread(
        target=lambda: texts.append(
            clients.grpc_text(triton_server, "Once upon a time", max_tokens=150, ignore_eos=True)
        )
    )
    other.start()
    for name, (change, said) in BAD_REQUESTS.items():
        body = {key: value for key, value in ({"text_input": PROMPT} | change).items() if value is not None}
        status, answer = clients.generate(triton_server, body)
        assert status == 400, name
        assert answer["error"].startswith("Error generating stream: "), name
        assert said in answer["error"], name
        assert "\n" not in answer["error"], name
        assert len(answer["error"]) < 500, name
    other.join()
    assert texts == [expected]


@pytest.mark.slow
def test_text_that_is_no_utf8_is_refused_over_grpc_with_a_code(triton_server: TritonServer) -> None:
    client = clients.GrpcStream(triton_server, b"caf\xe9", {}, stream=True)
    with pytest.raises(InferenceServerException, match=r"text_input: b'caf\\xe9' is not allowed; expected UTF-8"):
        list(client)
    client.close()


@pytest.mark.slow
def test_a_body_that_is_no_json_is_an_error_too(triton_server: TritonServer) -> None:
    status, answer = clients.generate(triton_server, b'{"text_input": ')
    assert status >= 400
    assert "JSON" in answer["error"]
