"""The vectors of a real encoder on both servers, by every way into them: those of `octavo.LLM`, and no text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import triton_clients as clients
import triton_ways as ways
from kserve_server import KServeServer
from model_repositories import add_model, killed_afterwards, options_for

from octavo import LLM, cosine_similarity
from octavo_triton.launch import TritonServer

pytestmark = pytest.mark.slow

MODEL = "minilm"
TEXTS = ["What is the capital of France?", "Paris is the capital of France.", "A cat sleeps. 🦊"]
TRITON_WAYS = [ways.over_generate, ways.over_generate_stream, ways.over_grpc_stream, ways.over_grpc_aio]


@pytest.fixture(scope="module")
def offline(minilm: Path) -> list[Any]:
    """The vectors without any server."""
    return LLM(str(minilm)).embed(TEXTS, use_tqdm=False)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, server_dir: Path, minilm: Path) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("repository")
    add_model(repository, MODEL, model=str(minilm))
    with killed_afterwards(options_for(repository, server_dir, load_models=None)) as server:
        yield server


@pytest.fixture(scope="module")
def kserve_server(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Iterator[KServeServer]:
    log = tmp_path_factory.mktemp("kserve") / "log"
    with KServeServer(log, f"--model_name={MODEL}", f"--model_dir={minilm}") as server:
        yield server


@pytest.fixture(scope="module")
def client(kserve_server: KServeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{kserve_server.url}/openai/v1", api_key="none", max_retries=0) as client:
        yield client


def same(found: Any, expected: Any) -> bool:
    return np.array_equal(np.array(found, dtype=np.float32), expected)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_official_client_gets_the_vectors_of_llm(client: openai.OpenAI, offline: list[Any], encoding: Any) -> None:
    asked: Any = {"encoding_format": encoding} if encoding == "float" else {}
    found = client.embeddings.create(model=MODEL, input=TEXTS, **asked)
    assert all(same(each.embedding, vector) for each, vector in zip(found.data, offline, strict=True))
    tokens = client.embeddings.create(model=MODEL, input=TEXTS[0]).usage.prompt_tokens
    assert 0 < tokens < found.usage.prompt_tokens == found.usage.total_tokens


def test_scores_and_rankings_are_cosines_of_those_vectors(kserve_server: KServeServer, offline: list[Any]) -> None:
    query, *documents = TEXTS
    expected = [cosine_similarity(offline[0], vector) for vector in offline[1:]]
    for path in ("/score", "/v1/score", "/openai/v1/score"):
        status, answer = kserve_server.post(path, {"text_1": query, "text_2": documents})
        assert (status, [each["score"] for each in answer["data"]]) == (200, expected)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/openai/v1/rerank"):
        status, answer = kserve_server.post(path, {"query": query, "documents": documents[::-1]})
        assert (status, [each["index"] for each in answer["results"]]) == (200, [1, 0])
        assert [each["relevance_score"] for each in answer["results"]] == expected


@pytest.mark.parametrize("way", TRITON_WAYS)
def test_every_way_into_the_triton_server_gives_the_vectors_of_llm(
    triton: TritonServer, offline: list[Any], way: Any
) -> None:
    for text, vector in zip(TEXTS, offline, strict=True):
        inputs = {"text_input": "", "embedding_request": json.dumps({"input": text}), "return_num_input_tokens": True}
        answer = ways.whole(way(triton, ways.Call(MODEL, inputs)))
        (found,) = answer["text_output"]
        assert same(json.loads(found), vector) and answer["num_input_tokens"][0] > 0


def test_v2_on_kserve_gives_the_vectors_of_llm(kserve_server: KServeServer, offline: list[Any]) -> None:
    asked = {"input": TEXTS[0]}
    status, answer = kserve_server.post(f"/v2/models/{MODEL}/generate", {"embedding_request": asked})
    assert status == 200 and same(json.loads(answer["text_output"]), offline[0])
    tensor = {"name": "embedding_request", "shape": [1], "datatype": "BYTES", "data": [json.dumps(asked)]}
    status, answer = kserve_server.post(f"/v2/models/{MODEL}/infer", {"inputs": [tensor]})
    (found,) = [output["data"][0] for output in answer["outputs"] if output["name"] == "text_output"]
    assert status == 200 and same(json.loads(found), offline[0])
    status, answer = kserve_server.post(f"/v1/models/{MODEL}:predict", {"instances": [{"embedding_request": asked}]})
    assert status == 200 and same(json.loads(answer["predictions"][0]["text_output"]), offline[0])


def test_texts_are_refused_by_both_servers(triton: TritonServer, kserve_server: KServeServer) -> None:
    generate = f"/v2/models/{MODEL}/generate"
    for status, answer in (
        clients.post(triton, generate, {"text_input": "a"}),
        kserve_server.post(generate, {"text_input": "a"}),
    ):
        assert status == 400 and "makes embeddings" in answer["error"]
    status, answer = kserve_server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]})
    assert (status, answer["error"]["param"]) == (400, "model")
    status, answer = clients.post(triton, generate, {"text_input": "", "embedding_request": '{"input": [1]}'})
    assert status == 200
    status, answer = clients.post(triton, generate, {"text_input": "", "embedding_request": '{"input": [99999999]}'})
    assert status == 400 and answer["error"].startswith("Error generating stream: ")
