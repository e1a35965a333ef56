"""The routes: which path is answered by what. Knows no field of a body beyond what a route hands on."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

import octavo
from octavo_kserve.errors import ClientGone, UnknownModel
from octavo_kserve.openai.chat_request import read_chat
from octavo_kserve.openai.chat_response import ChatEncoder
from octavo_kserve.openai.completion_request import read_completion
from octavo_kserve.openai.completion_response import CompletionEncoder
from octavo_kserve.openai.delivery import Delivery, JSONReply, error_response
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.model_cards import list_models, model_card
from octavo_kserve.openai.schemas import documented
from octavo_kserve.openai.tokens import detokenize, tokenize
from octavo_kserve.served_model import Models


class Route(APIRoute):
    """A route that answers its own errors, so that the application needs no handlers for them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, made safe."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientDisconnect:
                return error_response(ClientGone())
            except Exception as error:
                return error_response(error)

        return answer


def create_router(models: Models) -> APIRouter:
    """The OpenAI API without a prefix; mount it under "/v1" or wherever clients look for it."""
    router = APIRouter(route_class=Route, tags=["OpenAI"])

    @router.post("/chat/completions", **documented("chat"))
    async def create_chat_completion(request: Request) -> Response:
        """The next message of a chat."""
        chat = read_chat(await read_fields(request), models)
        return Delivery(chat, ChatEncoder(chat))

    @router.post("/completions", **documented("completion"))
    async def create_completion(request: Request) -> Response:
        """What follows a prompt."""
        completion = read_completion(await read_fields(request), models)
        return Delivery(completion, CompletionEncoder(completion))

    @router.get("/models", **documented())
    async def get_models() -> Response:
        """The models that are served."""
        return JSONReply(list_models(models))

    # A name may have slashes.
    @router.get("/models/{model:path}", **documented())
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

    @router.post("/tokenize", **documented("tokenize"))
    async def post_tokenize(request: Request) -> Response:
        """The tokens of a text, or of a chat as the model's template writes it."""
        return JSONReply(await tokenize(await read_fields(request), models))

    @router.post("/detokenize", **documented("detokenize"))
    async def post_detokenize(request: Request) -> Response:
        """The text of tokens."""
        return JSONReply(await detokenize(await read_fields(request), models))

    return router


async def read_fields(request: Request) -> Fields:
    """The body's fields, whatever content type the client has named."""
    return Fields.of_body(await request.body())
