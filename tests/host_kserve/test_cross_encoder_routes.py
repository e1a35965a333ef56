"""Scores and rankings by a tiny cross-encoder behind a real HTTP server: those of transformers, and LLM's bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from host_kserve.openai_server import clients, serve
from jsonschema import Draft202012Validator
from models.tiny_encoders import make_encoder

from octavo import LLM, AsyncEngine, EngineConfig
from octavo_kserve.embeddings.schemas import EMBEDDING_SCHEMAS
from octavo_kserve.served_model import Models, ServedModel

pytestmark = pytest.mark.slow

QUERY = "Who wrote it?"
DOCUMENTS = ["She did.", "A cat sleeps.", "x", "Nobody knows."]
TOO_LONG = "no " * 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judge")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    """The scores of all documents, by transformers."""
    model, tokenizer = make_encoder("BertForSequenceClassification", folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(QUERY, each, return_tensors="pt")).logits.item() for each in DOCUMENTS]
    return torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()


@pytest.fixture(scope="module")
def both(folder: Path, expected: list[float]) -> Iterator[tuple[openai.OpenAI, httpx2.Client]]:
    engine = AsyncEngine(EngineConfig(model=str(folder), num_threads=1, served_model_name="inner"))
    models = Models()
    models.add(ServedModel("judge", engine, 1_700_000_000))
    try:
        engine.wait_ready(60)
        with serve(models) as address, clients(address) as both:
            yield both
    finally:
        engine.shutdown(drain_s=0)


def ask(plain: httpx2.Client, path: str, **body: Any) -> dict[str, Any]:
    reply = plain.post(f"/v1/{path}", json={"model": "judge", **body})
    assert reply.status_code == 200, reply.text
    Draft202012Validator(EMBEDDING_SCHEMAS["Scores" if path == "score" else "Ranking"]).validate(reply.json())
    return dict(reply.json())


def test_scores_are_those_of_transformers_and_have_the_bits_of_llm(
    plain: httpx2.Client, folder: Path, expected: list[float]
) -> None:
    answer = ask(plain, "score", text_1=QUERY, text_2=DOCUMENTS)
    found = [each["score"] for each in answer["data"]]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found == LLM(str(folder), num_threads=1).score(QUERY, DOCUMENTS)
    for document, score in zip(DOCUMENTS, found, strict=True):
        (alone,) = ask(plain, "score", text_1=[QUERY], text_2=document)["data"]
        assert alone["score"] == score
    assert ask(plain, "score", queries=QUERY, documents=DOCUMENTS)["data"] == answer["data"]
    # The query is read again with each document.
    assert answer["usage"]["prompt_tokens"] > len(DOCUMENTS) * len(QUERY.replace(" ", ""))


def test_the_best_document_comes_first(plain: httpx2.Client, expected: list[float]) -> None:
    results = ask(plain, "rerank", query=QUERY, documents=DOCUMENTS)["results"]
    best = sorted(range(len(DOCUMENTS)), key=lambda i: -expected[i])
    assert [each["index"] for each in results] == best
    assert [each["relevance_score"] for each in results] == pytest.approx([expected[i] for i in best], abs=1e-5)
    assert [each["document"]["text"] for each in results] == [DOCUMENTS[i] for i in best]
    (first,) = ask(plain, "rerank", query=QUERY, documents=[TOO_LONG], truncate_prompt_tokens=-1)["results"]
    assert first["document"] == {"text": TOO_LONG}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("score", {"text_1": QUERY, "text_2": TOO_LONG}, "text_2: "),
        ("score", {"text_1": ["a", "b"], "text_2": ["c", TOO_LONG]}, "text_2[1]: "),
        ("rerank", {"query": QUERY, "documents": ["a", TOO_LONG]}, "documents[1]: "),
        ("rerank", {"query": QUERY, "documents": [TOO_LONG]}, "documents[0]: "),
        ("rerank", {"query": TOO_LONG, "documents": ["a"], "truncate_prompt_tokens": -1}, "query: it leaves no room"),
        ("score", {"text_1": TOO_LONG, "text_2": "a", "truncate_prompt_tokens": 9}, "text_1: it leaves no room"),
    ],
)
def test_which_text_is_too_long_is_told(plain: httpx2.Client, path: str, body: dict[str, Any], named: str) -> None:
    error = plain.post(f"/v1/{path}", json={"model": "judge", **body}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(named)


def test_vectors_and_texts_are_refused_by_name(plain: httpx2.Client) -> None:
    reply = plain.post("/v1/embeddings", json={"model": "judge", "input": "a"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model")
    assert "model: 'judge' is not allowed" in reply.text and "this one scores pairs of texts" in reply.text
    for path, body in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": []})):
        assert plain.post(f"/v1/{path}", json={"model": "judge", **body}).status_code == 400
    for refused in ({"dimensions": 1}, {"use_activation": False}):
        reply = plain.post("/v1/rerank", json={"model": "judge", "query": "a", "documents": ["b"], **refused})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, *refused)
