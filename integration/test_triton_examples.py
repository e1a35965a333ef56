"""The example repositories, served beside the embedded model as `make serve MODEL_REPOSITORY="..."` does it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton_clients as clients
from model_repositories import killed_afterwards, options_for

from octavo_triton.launch import TritonServer
from octavo_triton.server import welcome

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples/triton"
TEXT = "Paris is the capital of France. It lies on the Seine, and two million people live there."
NO_BYTE_CODE = {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def examples_server(server_dir: Path) -> Iterator[TritonServer]:
    repositories = (REPOSITORY / "model_repository", EXAMPLES)
    with killed_afterwards(options_for(repositories, server_dir, load_models=None, environment=NO_BYTE_CODE)) as server:
        yield server


def ask(server: TritonServer, model: str, **body: Any) -> dict[str, Any]:
    status, answer = clients.post(server, f"/v2/models/{model}/generate", body)
    assert status == 200, answer
    return answer


def events_of(server: TritonServer, model: str, **body: Any) -> list[str]:
    """The pieces of text that /generate_stream brings."""
    with clients.http_stream(server, body, model=model) as events:
        return [event["text_output"] for event in events]


@pytest.mark.slow
def test_every_example_is_served(examples_server: TritonServer) -> None:
    examples = {folder.name for folder in EXAMPLES.iterdir()}
    assert set(examples_server.models()) == examples | {"smollm2"}
    assert "/v2/models/smollm2/generate_stream" in welcome(examples_server)


@pytest.mark.slow
def test_the_ensemble_answers_a_question_from_text_input_alone(examples_server: TritonServer) -> None:
    assert ask(examples_server, "question", text_input="What is the capital of France?")["text_output"]


@pytest.mark.slow
def test_the_ensemble_passes_parameters_and_streams_through(examples_server: TritonServer) -> None:
    question = "What is the capital of France?"
    text = ask(examples_server, "question", text_input=question, temperature=0, max_tokens=24)["text_output"]
    assert "Paris" in text
    sampling = json.dumps({"temperature": 0, "max_tokens": 24})
    pieces = events_of(examples_server, "question", text_input=question, sampling_parameters=sampling)
    assert "".join(pieces) == text
    assert len(pieces) > 3


@pytest.mark.slow
def test_an_error_of_the_language_model_reaches_the_ensembles_client(examples_server: TritonServer) -> None:
    body = {"text_input": "What?", "temperature": -1}
    status, answer = clients.post(examples_server, "/v2/models/question/generate", body)
    assert status == 400
    assert "temperature: -1 is not allowed" in answer["error"]


@pytest.mark.slow
def test_the_summary_of_two_calls_streams_the_second_through(examples_server: TritonServer) -> None:
    text = ask(examples_server, "summary", text_input=TEXT)["text_output"]
    pieces = events_of(examples_server, "summary", text_input=TEXT)
    assert "".join(pieces) == text
    assert len(pieces) > 3


@pytest.mark.slow
def test_the_likelier_of_two_completions_wins(examples_server: TritonServer) -> None:
    answer = ask(examples_server, "best_of_two", text_input="The capital of France is")
    sampling = {"n": 2, "temperature": 0.9, "seed": 1, "max_tokens": 24, "ignore_eos": True}
    both = ask(
        examples_server,
        "smollm2",
        text_input="The capital of France is",
        sampling_parameters=json.dumps(sampling),
        exclude_input_in_output=True,
        return_cumulative_logprob=True,
    )
    candidates = dict(zip(both["cumulative_logprob"], both["text_output"], strict=True))
    assert len(candidates) == 2
    assert answer["text_output"] == candidates[max(candidates)]
    assert answer["cumulative_logprob"] == max(candidates)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["summary", "best_of_two"])
def test_a_request_that_the_language_model_refuses_fails_alone(examples_server: TritonServer, model: str) -> None:
    too_long = {"text_input": "one two " * 5000}
    status, answer = clients.post(examples_server, f"/v2/models/{model}/generate", too_long)
    assert status == 400
    assert "8192" in answer["error"]
    assert ask(examples_server, model, text_input="The sea")["text_output"]


@pytest.mark.slow
@pytest.mark.parametrize("example", ["question", "summary", "best_of_two"])
def test_the_commands_in_the_comments_work_as_they_stand(examples_server: TritonServer, example: str) -> None:
    comments = re.findall(r"^# ?(.*)$", (EXAMPLES / example / "config.pbtxt").read_text(encoding="utf-8"), re.MULTILINE)
    commands = re.findall(r"^ *(curl .*?)$", "\n".join(comments).replace("\\\n", ""), re.MULTILINE)
    assert commands
    for command in commands:
        here = command.replace("localhost:8000", f"127.0.0.1:{examples_server.options.http_port}")
        done = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True, timeout=60)
        assert '"text_output":"' in done.stdout
