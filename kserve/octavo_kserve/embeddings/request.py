"""Reads requests to /embeddings, /score and /rerank: what is to be made of which texts, and what is told of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import octavo
from octavo_kserve.openai.completion_request import MOST_PROMPTS, read_prompts
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import Call, read_call
from octavo_kserve.served_model import Models

_BASE64 = "base64"
# The two sides of the pairs: vLLM has had several names for them.
SIDES = (("text_1", "text_2"), ("queries", "documents"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingRequest:
    """One vector or score each of `prompts`. `names`: where these stand in the body, by what errors call them."""

    call: Call
    prompts: tuple[str | list[int] | octavo.TextPair, ...]
    names: Mapping[str, str]
    params: octavo.PoolingParams


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """The vectors themselves, in base64 or as numbers."""

    pooling: PoolingRequest
    in_base64: bool


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How well the `texts` of each pair go together, by their numbers. A cross-encoder's prompts are the pairs."""

    pooling: PoolingRequest
    texts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """How well the first text, the query, goes with the others: the `top_n` best, with their texts or without."""

    scores: ScoreRequest
    top_n: int
    returns_documents: bool


def read_embedding(fields: Fields, models: Models) -> EmbeddingRequest:
    """Reads a body of /embeddings. Raises InvalidRequest that names the field at fault, or UnknownModel."""
    encoding = fields.text("encoding_format") or "float"
    if encoding not in ("float", _BASE64):
        raise octavo.InvalidRequest("encoding_format", encoding, '"float" or "base64"')
    prompts = tuple(read_prompts("input", fields.get("input")))
    call, params = _read_call(fields, models, "embd-")
    if call.served.engine.scores_pairs:
        raise octavo.InvalidRequest("model", call.model, "one that makes embeddings: this one scores pairs of texts")
    pooling = PoolingRequest(call=call, prompts=prompts, names={"prompt": "input"}, params=params)
    return EmbeddingRequest(pooling, encoding == _BASE64)


def read_score(fields: Fields, models: Models) -> ScoreRequest:
    """Reads a body of /score: two SIDES, of which one text alone goes with all of the other."""
    sides = [{name: fields.get(name) for name in names} for names in SIDES]
    given = next((side for side in sides if any(value is not None for value in side.values())), sides[0])
    (first, second), (left, right) = given, (_read_texts(name, value) for name, value in given.items())
    if len(left) != len(right) and 1 not in (len(left), len(right)):
        raise octavo.InvalidRequest(second, f"{len(right)} texts", f"{len(left)}, as many as `{first}` has, or one")
    # One text more, as of a query, still fits an engine's queue; twice as many do not.
    if len(left) == len(right) > MOST_PROMPTS // 2:
        raise octavo.InvalidRequest(second, f"{len(right)} texts", f"at most {MOST_PROMPTS // 2} beside as many")
    number = max(len(left), len(right))
    pairs = [(i % len(left), len(left) + i % len(right)) for i in range(number)]
    return _read_pairs(fields, models, "score-", given, pairs)


def read_rerank(fields: Fields, models: Models) -> RerankRequest:
    """Reads a body of /rerank: `query` and `documents`."""
    query, documents = fields.text("query"), fields.get("documents")
    if not query:
        raise octavo.InvalidRequest("query", query, "a text that is not empty")
    if not isinstance(documents, list):
        raise octavo.InvalidRequest("documents", documents, "a list of texts")
    texts = _read_texts("documents", [_text_of(document) for document in documents])
    pairs = [(0, 1 + i) for i in range(len(texts))]
    top_n = fields.whole_number("top_n", 0, 2**31 - 1)
    return RerankRequest(
        returns_documents=fields.flag("return_documents", True),
        # What some clients send for all of them.
        top_n=top_n or len(texts),
        scores=_read_pairs(fields, models, "rerank-", {"query": query, "documents": texts}, pairs),
    )


def _read_call(fields: Fields, models: Models, prefix: str) -> tuple[Call, octavo.PoolingParams]:
    call = read_call(fields, models, prefix)
    fields.refuse("stream", "vectors come in one piece")
    given = {name: fields.get(name) for name in octavo.PoolingParams.parameter_names()}
    params = octavo.PoolingParams.from_mapping(given)
    fields.log_unknown()
    return call, params


def _read_pairs(
    fields: Fields, models: Models, prefix: str, given: Mapping[str, Any], pairs: Sequence[tuple[int, int]]
) -> ScoreRequest:
    """given: the two sides of the pairs by their fields' names, each a text or a list of them."""
    call, params = _read_call(fields, models, prefix)
    texts, names = list[str](), list[str]()
    for name, value in given.items():
        texts += value if isinstance(value, list) else [value]
        names += [f"{name}[{i}]" for i in range(len(value))] if isinstance(value, list) else [name]
    prompts: list[str | octavo.TextPair] = [*texts]
    places = {f"prompt[{i}]": name for i, name in enumerate(names)}
    if call.served.engine.scores_pairs:
        for name in ("use_activation", "activation"):
            if not fields.flag(name, True):
                raise octavo.InvalidRequest(name, False, "true or null: the model's own files say what a score is")
        prompts = [octavo.TextPair(texts[left], texts[right]) for left, right in pairs]
        # What is said of a whole pair is mostly about its second text, the longer one.
        places = {f"prompt[{i}]": names[right] for i, (_, right) in enumerate(pairs)}
        places |= {"prompt": names[pairs[0][1]]} | dict(zip(("query", "document"), given, strict=True))
    pooling = PoolingRequest(call=call, prompts=tuple(prompts), names=places, params=params)
    return ScoreRequest(pooling, tuple(texts), tuple(pairs))


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
