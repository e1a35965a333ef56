"""JSON schemas of the bodies that the routes for vectors read, and of what they answer.

For readers and tools only. Knows no route.
"""

from __future__ import annotations

from octavo_kserve.described import Schema, integer, nullable, record
from octavo_kserve.embeddings.request import SIDES
from octavo_kserve.openai.completion_request import MOST_PROMPTS
from octavo_kserve.openai.schemas import CALL, PROMPT
from octavo_kserve.sampling_schemas import INT32_MAX, TEXT

_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG = nullable(type="boolean")
_TEXTS: Schema = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MOST_PROMPTS}
_ASKED: dict[str, Schema] = {
    **{name: schema for name, schema in CALL.items() if name != "stream"},
    "dimensions": integer(1, INT32_MAX),
    "normalize": _FLAG,
    "truncate_prompt_tokens": {
        "anyOf": [{"type": "null"}, {"const": -1}, {"type": "integer", "minimum": 1, "maximum": INT32_MAX}]
    },
    "prompt_name": nullable(**TEXT),
}
_EMBEDDING: dict[str, Schema] = {"input": PROMPT, "encoding_format": {"enum": ["float", "base64", None]}}
_SCORE: dict[str, Schema] = {name: {"anyOf": [TEXT, _TEXTS]} for names in SIDES for name in names}
_DOCUMENT = record({"text": TEXT})
_RERANK: dict[str, Schema] = {
    "query": TEXT,
    "documents": _TEXTS | {"items": {"anyOf": [TEXT, _DOCUMENT]}},
    "top_n": integer(0, INT32_MAX),
    "return_documents": _FLAG,
}
_ENVELOPE: dict[str, Schema] = {
    "id": {"type": "string"},
    "created": _COUNT,
    "model": {"type": "string"},
    "usage": record({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
}
_VECTOR: Schema = {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}
# Cosines, or whatever numbers a cross-encoder's own files want.
_SIMILARITY: Schema = {"type": "number"}


def _list(**item: Schema) -> Schema:
    return record(
        _ENVELOPE | {"object": {"const": "list"}, "data": {"type": "array", "items": record({"index": _COUNT} | item)}}
    )


EMBEDDING_SCHEMAS: dict[str, Schema] = {
    "EmbeddingRequest": record(
        _EMBEDDING | _ASKED,
        {"encoding_format", *_ASKED},
        examples=[{"input": "The sea"}, {"input": ["The sea", "A ship"], "encoding_format": "base64"}],
    ),
    "ScoreRequest": record(
        _SCORE | _ASKED, {*_SCORE, *_ASKED}, examples=[{"text_1": "The sea", "text_2": ["A ship", "A desk"]}]
    )
    | {"anyOf": [{"required": list(names)} for names in SIDES]},
    "RerankRequest": record(
        _RERANK | _ASKED,
        {"top_n", "return_documents", *_ASKED},
        examples=[{"query": "The sea", "documents": ["A ship", "A desk"], "top_n": 1}],
    ),
    "Embeddings": _list(object={"const": "embedding"}, embedding=_VECTOR),
    "Scores": _list(object={"const": "score"}, score=_SIMILARITY),
    "Ranking": record(
        _ENVELOPE
        | {
            "results": {
                "type": "array",
                "items": record({"index": _COUNT, "relevance_score": _SIMILARITY, "document": _DOCUMENT}, ["document"]),
            }
        }
    ),
}
