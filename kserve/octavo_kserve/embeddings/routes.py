"""The routes for models that make vectors. Knows no field of a body."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from octavo_kserve.described import answers, described
from octavo_kserve.embeddings.answers import embeddings, ranking, scores
from octavo_kserve.embeddings.request import read_embedding, read_rerank, read_score
from octavo_kserve.openai.route import Route, read_fields
from octavo_kserve.replies import JSONReply
from octavo_kserve.served_model import Models

_ERRORS = (400, 404, 408, 413, 422, 429, 500, 503)
_OPENAI: Any = {"style": "Error"}
_EMBED = described("Embed", answers("Embeddings"), "EmbeddingRequest", _ERRORS, **_OPENAI)
_SCORE = described("Compare texts", answers("Scores"), "ScoreRequest", _ERRORS, **_OPENAI)
_RERANK = described("Rank documents", answers("Ranking"), "RerankRequest", _ERRORS, **_OPENAI)


def create_embeddings_router(models: Models) -> APIRouter:
    """`/embeddings`, `/score` and `/rerank` without a prefix."""
    router = APIRouter(route_class=Route, tags=["embeddings"])

    @router.post("/embeddings", **_EMBED)
    async def create_embeddings(request: Request) -> Response:
        """A vector of each text."""
        asked = read_embedding(await read_fields(request), models)
        return Response(await embeddings(asked), media_type="application/json")

    for create in (create_score_router, create_rerank_router):
        router.include_router(create(models))
    return router


def create_score_router(models: Models) -> APIRouter:
    """`/score`, which clients look for at the root, too."""
    router = APIRouter(route_class=Route, tags=["embeddings"])

    @router.post("/score", **_SCORE)
    async def create_score(request: Request) -> Response:
        """How like texts are."""
        asked = read_score(await read_fields(request), models)
        return JSONReply(await scores(asked))

    return router


def create_rerank_router(models: Models) -> APIRouter:
    """`/rerank`, which clients look for at the root and below /v2, too."""
    router = APIRouter(route_class=Route, tags=["embeddings"])

    @router.post("/rerank", **_RERANK)
    async def create_ranking(request: Request) -> Response:
        """Which documents are most like a query."""
        asked = read_rerank(await read_fields(request), models)
        return JSONReply(await ranking(asked))

    return router
