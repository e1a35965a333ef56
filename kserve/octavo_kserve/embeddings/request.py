"""Reads requests to /embeddings, /score and /rerank: which vectors are to be made, and what is to be told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import octavo
from octavo_kserve.openai.completion_request import MOST_PROMPTS, read_prompts
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import Call, read_call
from octavo_kserve.served_model import Models

_BASE64 = "base64"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingRequest:
    """One vector each of `prompts`. `names`: where these stand in the body, by what errors call them."""

    call: Call
    prompts: tuple[str | list[int], ...]
    names: Mapping[str, str]
    params: octavo.PoolingParams


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """The vectors themselves, in base64 or as numbers."""

    pooling: PoolingRequest
    in_base64: bool


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How like each other the prompts of each pair are: by their numbers."""

    pooling: PoolingRequest
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """How like the first prompt, the query, the others are: the `top_n` best of them, with their texts or without."""

    pooling: PoolingRequest
    top_n: int
    returns_documents: bool


def read_embedding(fields: Fields, models: Models) -> EmbeddingRequest:
    """Reads a body of /embeddings. Raises InvalidRequest that names the field at fault, or UnknownModel."""
    encoding = fields.text("encoding_format") or "float"
    if encoding not in ("float", _BASE64):
        raise octavo.InvalidRequest("encoding_format", encoding, '"float" or "base64"')
    prompts = read_prompts("input", fields.get("input"))
    return EmbeddingRequest(_read_pooling(fields, models, "embd-", prompts, {"prompt": "input"}), encoding == _BASE64)


def read_score(fields: Fields, models: Models) -> ScoreRequest:
    """Reads a body of /score: `text_1` and `text_2`, of which one alone goes with all of the other side."""
    given = {name: fields.get(name) for name in ("text_1", "text_2")}
    left, right = (_read_texts(name, value) for name, value in given.items())
    if len(left) != len(right) and 1 not in (len(left), len(right)):
        raise octavo.InvalidRequest("text_2", f"{len(right)} texts", f"{len(left)}, as many as `text_1` has, or one")
    # One text more, as of a query, still fits an engine's queue; twice as many do not.
    if len(left) == len(right) > MOST_PROMPTS // 2:
        raise octavo.InvalidRequest("text_2", f"{len(right)} texts", f"at most {MOST_PROMPTS // 2} beside as many")
    pooling = _read_pooling(fields, models, "score-", [*left, *right], _names(given))
    number = max(len(left), len(right))
    pairs = [(i % len(left), len(left) + i % len(right)) for i in range(number)]
    return ScoreRequest(pooling, tuple(pairs))


def read_rerank(fields: Fields, models: Models) -> RerankRequest:
    """Reads a body of /rerank: `query` and `documents`."""
    query, documents = fields.text("query"), fields.get("documents")
    if not query:
        raise octavo.InvalidRequest("query", query, "a text that is not empty")
    if not isinstance(documents, list):
        raise octavo.InvalidRequest("documents", documents, "a list of texts")
    texts = _read_texts("documents", [_text_of(document) for document in documents])
    names = _names({"query": query, "documents": texts})
    top_n = fields.whole_number("top_n", 0, 2**31 - 1)
    return RerankRequest(
        returns_documents=fields.flag("return_documents", True),
        top_n=len(texts) if top_n is None else top_n,
        pooling=_read_pooling(fields, models, "rerank-", [query, *texts], names),
    )


def _read_pooling(
    fields: Fields, models: Models, prefix: str, prompts: list[Any], names: Mapping[str, str]
) -> PoolingRequest:
    call = read_call(fields, models, prefix)
    fields.refuse("stream", "vectors come in one piece")
    given = {name: fields.get(name) for name in octavo.PoolingParams.parameter_names()}
    params = octavo.PoolingParams.from_mapping(given)
    fields.log_unknown()
    return PoolingRequest(call=call, prompts=tuple(prompts), names=names, params=params)


def _names(given: Mapping[str, Any]) -> dict[str, str]:
    """Of the prompts that these fields have, one after the other: each is a text or a list of them."""
    names = list[str]()
    for name, value in given.items():
        names += [f"{name}[{i}]" for i in range(len(value))] if isinstance(value, list) else [name]
    return {f"prompt[{i}]": name for i, name in enumerate(names)}


def _read_texts(name: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise octavo.InvalidRequest(name, value, "a text, or a list of texts that is not empty")
    if len(texts) > MOST_PROMPTS:
        raise octavo.InvalidRequest(name, f"{len(texts)} texts", f"at most {MOST_PROMPTS}")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise octavo.InvalidRequest(f"{name}[{i}]", text, "a text that is not empty")
    return texts


def _text_of(document: object) -> object:
    """Some clients write a document as an object."""
    return document.get("text") if isinstance(document, dict) else document
