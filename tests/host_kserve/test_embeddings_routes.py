"""Embeddings, scores and rankings behind a real HTTP server, over engines with the fake executor, for real clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from host_kserve.openai_server import clients, serve, start_engine
from host_kserve.test_openai_routes import MESSAGES
from jsonschema import Draft202012Validator

import octavo
from octavo import AsyncEngine
from octavo.testing import fake_embedding
from octavo_kserve.embeddings.schemas import EMBEDDING_SCHEMAS
from octavo_kserve.served_model import Models, ServedModel

pytestmark = pytest.mark.slow

TOO_LONG = "x" * 60_000
TEXTS = ["The sea", "A ship", "A desk", "The sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[AsyncEngine]:
    engine = start_engine(folder, runner="pooling")
    yield engine
    engine.shutdown(drain_s=0)


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[AsyncEngine]:
    engine = start_engine(folder, executor="octavo.testing:create_fake_executor")
    yield engine
    engine.shutdown(drain_s=0)


@pytest.fixture(scope="module")
def both(engine: AsyncEngine, other: AsyncEngine) -> Iterator[tuple[openai.OpenAI, httpx2.Client]]:
    models = Models()
    models.add(ServedModel("org/mini", engine, 1_700_000_000, ("mini",)))
    models.add(ServedModel("writer", other, 1_700_000_000))
    with serve(models) as address, clients(address) as both:
        yield both


def vector(text: str) -> Any:
    return np.array(fake_embedding(list(text.encode())), dtype=np.float32)


def similarity(left: str, right: str) -> float:
    return octavo.cosine_similarity(vector(left), vector(right))


def ask(plain: httpx2.Client, path: str, schema: str, **body: Any) -> dict[str, Any]:
    reply = plain.post(path, json={"model": "mini", **body})
    assert reply.status_code == 200, reply.text
    Draft202012Validator(EMBEDDING_SCHEMAS[schema]).validate(reply.json())
    return dict(reply.json())


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_each_text_has_its_vector_in_its_place(client: openai.OpenAI, encoding: Any) -> None:
    # Asked for nothing, the client wants base64 and reads it itself.
    asked: Any = {"encoding_format": encoding} if encoding == "float" else {}
    found = client.embeddings.create(model="mini", input=TEXTS, **asked)
    assert [each.index for each in found.data] == list(range(len(TEXTS)))
    for text, each in zip(TEXTS, found.data, strict=True):
        assert np.array_equal(np.array(each.embedding, dtype=np.float32), vector(text))
    num_tokens = sum(map(len, TEXTS))
    assert (found.usage.prompt_tokens, found.usage.total_tokens, found.model) == (num_tokens, num_tokens, "mini")


def test_every_kind_of_input_is_the_same_text(client: openai.OpenAI) -> None:
    token_ids = list(TEXTS[0].encode())
    for given in (TEXTS[0], [TEXTS[0]], token_ids, [token_ids]):
        (found,) = client.embeddings.create(model="mini", input=given, encoding_format="float").data
        assert found.embedding == vector(TEXTS[0]).tolist()


def test_one_text_is_compared_with_all_of_the_others_or_each_with_its_own(plain: httpx2.Client) -> None:
    first, *others = TEXTS
    expected = [similarity(first, other) for other in others]
    for texts in ({"text_1": first, "text_2": others}, {"text_1": others, "text_2": first}):
        assert [each["score"] for each in ask(plain, "/v1/score", "Scores", **texts)["data"]] == expected
    pairs = ask(plain, "/v1/score", "Scores", text_1=TEXTS, text_2=TEXTS[::-1])["data"]
    assert [each["score"] for each in pairs] == [similarity(*pair) for pair in zip(TEXTS, TEXTS[::-1], strict=True)]
    assert [each["index"] for each in pairs] == list(range(len(TEXTS)))


def test_the_documents_most_like_the_query_come_first(plain: httpx2.Client) -> None:
    query, *documents = TEXTS
    asked: Any = {"query": query, "documents": [*documents[:2], {"text": documents[2]}]}
    results = ask(plain, "/v1/rerank", "Ranking", **asked)["results"]
    assert results[0] == {"index": 2, "relevance_score": similarity(query, query), "document": {"text": query}}
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted((similarity(query, document) for document in documents), reverse=True)
    assert [each["document"]["text"] for each in results] == [documents[each["index"]] for each in results]
    (best,) = ask(plain, "/v1/rerank", "Ranking", **asked, top_n=1, return_documents=False)["results"]
    assert best == {"index": 2, "relevance_score": similarity(query, query)}
    for top_n in (9, 0):
        assert len(ask(plain, "/v1/rerank", "Ranking", **asked, top_n=top_n)["results"]) == 3


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("embeddings", {}, "input"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": ["a", ""]}, "input[1]"),
        ("embeddings", {"input": [[1], "a"]}, "input[1]"),
        ("embeddings", {"input": [99_999]}, "input[0]"),
        ("embeddings", {"input": [[1], [2, 99_999]]}, "input[1][1]"),
        ("embeddings", {"input": ["a"] * 1025}, "input"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("embeddings", {"input": "a", "dimensions": 3}, "dimensions"),
        ("embeddings", {"input": "a", "stream": True}, "stream"),
        ("score", {"text_1": "a"}, "text_2"),
        ("score", {"text_1": ["a", 5], "text_2": "a"}, "text_1[1]"),
        ("score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ("score", {"text_1": ["a"] * 513, "text_2": ["b"] * 513}, "text_2"),
        ("score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "documents"),
        ("score", {"queries": "a", "text_2": "b"}, "text_1"),
        ("rerank", {"documents": ["a"]}, "query"),
        ("rerank", {"query": "a", "documents": "b"}, "documents"),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents[0]"),
        ("rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
    ],
)
def test_what_is_wrong_is_named(plain: httpx2.Client, path: str, body: dict[str, Any], param: str) -> None:
    reply = plain.post(f"/v1/{path}", json={"model": "mini", **body})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("embeddings", {"input": TOO_LONG}, "input"),
        ("embeddings", {"input": ["a", TOO_LONG]}, "input[1]"),
        ("score", {"text_1": TOO_LONG, "text_2": "a"}, "text_1"),
        ("score", {"text_1": ["a", "b"], "text_2": ["c", TOO_LONG]}, "text_2[1]"),
        ("rerank", {"query": "a", "documents": ["b", TOO_LONG]}, "documents[1]"),
    ],
)
def test_which_text_is_too_long_is_told(plain: httpx2.Client, path: str, body: dict[str, Any], named: str) -> None:
    error = plain.post(f"/v1/{path}", json={"model": "mini", **body}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(f"{named}: {len(TOO_LONG)} tokens are over the context")


def test_the_other_task_is_refused_on_every_route_by_the_models_name(plain: httpx2.Client) -> None:
    texts: dict[str, Any] = {
        "chat/completions": {"messages": MESSAGES},
        "completions": {"prompt": "a"},
        "responses": {"input": "a"},
        "messages": {"messages": MESSAGES, "max_tokens": 3},
    }
    vectors: dict[str, Any] = {
        "embeddings": {"input": "a"},
        "score": {"text_1": "a", "text_2": "b"},
        "rerank": {"query": "a", "documents": ["b"]},
    }
    for model, bodies in (("mini", texts), ("writer", vectors)):
        for path, body in bodies.items():
            reply = plain.post(f"/v1/{path}", json={"model": model, **body})
            assert reply.status_code == 400 and f"model: '{model}' is not allowed" in reply.json()["error"]["message"]


def test_where_one_text_fails_nothing_goes_on_for_the_others(engine: AsyncEngine, plain: httpx2.Client) -> None:
    reply = plain.post("/v1/embeddings", json={"model": "mini", "input": ["a " * 250] * 16, "deadline_s": 0.001})
    assert reply.status_code == 408
    assert plain.post("/v1/embeddings", json={"model": "mini", "input": "x" * 60_000}).status_code == 400
    assert (engine.stats().num_requests_running, engine.stats().num_requests_waiting) == (0, 0)


def test_every_example_is_answered(plain: httpx2.Client) -> None:
    answers = {"EmbeddingRequest": "Embeddings", "ScoreRequest": "Scores", "RerankRequest": "Ranking"}
    paths = {"EmbeddingRequest": "embeddings", "ScoreRequest": "score", "RerankRequest": "rerank"}
    for name, path in paths.items():
        for example in EMBEDDING_SCHEMAS[name]["examples"]:
            ask(plain, f"/v1/{path}", answers[name], **example)
