"""The routes: which path is answered by what. Knows no field of a body beyond what a route hands on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

import octavo
from octavo_kserve.described import answers, described
from octavo_kserve.errors import UnknownModel
from octavo_kserve.openai.chat_request import read_chat
from octavo_kserve.openai.chat_response import ChatEncoder
from octavo_kserve.openai.completion_request import read_completion
from octavo_kserve.openai.completion_response import CompletionEncoder
from octavo_kserve.openai.delivery import Delivery
from octavo_kserve.openai.model_cards import list_models, model_card
from octavo_kserve.openai.route import Route, read_fields
from octavo_kserve.openai.tokens import detokenize, tokenize
from octavo_kserve.replies import JSONReply
from octavo_kserve.served_model import Models

_GENERATES = (400, 404, 408, 413, 422, 429, 500, 503)
_OPENAI: Any = {"style": "Error"}
_CHAT = described("Chat", answers("Chat", "ChatChunk", "[DONE]"), "ChatRequest", _GENERATES, **_OPENAI)
_COMPLETION = described(
    "Complete prompts",
    answers("Completion", "CompletionChunk", "[DONE]"),
    "CompletionRequest",
    _GENERATES,
    **_OPENAI,
)
_MODELS = described("List the models", answers("ModelList"))
_MODEL = described("Describe a model", answers("Model"), errors=(404, 503), **_OPENAI)
_TOKENIZE = described("Text to tokens", answers("Tokens"), "TokenizeRequest", (400, 404, 413, 422, 500, 503), **_OPENAI)
_DETOKENIZE = described("Tokens to text", answers("Text"), "DetokenizeRequest", (400, 404, 413, 500, 503), **_OPENAI)


def create_router(models: Models) -> APIRouter:
    """The OpenAI API without a prefix; mount it under "/v1" or wherever clients look for it."""
    router = APIRouter(route_class=Route, tags=["OpenAI"])

    @router.post("/chat/completions", **_CHAT)
    async def create_chat_completion(request: Request) -> Response:
        """The next message of a chat."""
        chat = read_chat(await read_fields(request), models)
        return Delivery(chat, ChatEncoder(chat))

    @router.post("/completions", **_COMPLETION)
    async def create_completion(request: Request) -> Response:
        """What follows a prompt."""
        completion = read_completion(await read_fields(request), models)
        return Delivery(completion, CompletionEncoder(completion))

    @router.get("/models", **_MODELS)
    async def get_models() -> Response:
        """The models that are served."""
        return JSONReply(list_models(models))

    # A name may have slashes.
    @router.get("/models/{model:path}", **_MODEL)
    async def get_model(model: str) -> Response:
        """One of them; for clients of KServe's first protocol this tells whether it is ready."""
        served = models.get(model)
        if served is None:
            raise UnknownModel(model)
        if not served.engine.is_ready():
            raise octavo.EngineDead(f"model: {model!r} is not ready")
        return JSONReply(model_card(served, model))

    return router


def create_tokenize_router(models: Models) -> APIRouter:
    """Text to tokens and back, as vLLM has it at the root."""
    router = APIRouter(route_class=Route, tags=["tokens"])

    @router.post("/tokenize", **_TOKENIZE)
    async def post_tokenize(request: Request) -> Response:
        """The tokens of a text, or of a chat as the model's template writes it."""
        return JSONReply(await tokenize(await read_fields(request), models))

    @router.post("/detokenize", **_DETOKENIZE)
    async def post_detokenize(request: Request) -> Response:
        """The text of tokens."""
        return JSONReply(await detokenize(await read_fields(request), models))

    return router
