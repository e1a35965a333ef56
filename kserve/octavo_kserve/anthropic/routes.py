"""The routes of Anthropic's Messages API. Knows no field of a body beyond what a route hands on."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from octavo_kserve.anthropic.request import NAMES, read_counted, read_message
from octavo_kserve.anthropic.writer import AnthropicWriter
from octavo_kserve.described import answers, described
from octavo_kserve.openai.delivery import Delivery
from octavo_kserve.openai.route import Route, read_fields
from octavo_kserve.openai.spelling import spelled
from octavo_kserve.replies import JSONReply
from octavo_kserve.served_model import Models

_ANTHROPIC: Any = {"style": "AnthropicError"}
_MESSAGE = described(
    "Write a message",
    answers("AnthropicMessage", "AnthropicEvent"),
    "AnthropicRequest",
    (400, 404, 408, 413, 429, 500, 503),
    **_ANTHROPIC,
)
_COUNT = described(
    "Count a prompt's tokens",
    answers("AnthropicCount"),
    "AnthropicCountRequest",
    (400, 404, 413, 500, 503),
    **_ANTHROPIC,
)


def create_messages_router(models: Models) -> APIRouter:
    """`/messages` without a prefix."""
    router = APIRouter(route_class=Route, tags=["Anthropic"])

    @router.post("/messages", **_MESSAGE)
    async def create_message(request: Request) -> Response:
        """The next message of a conversation."""
        asked = read_message(await read_fields(request), models)
        return Delivery(asked, AnthropicWriter(asked))

    @router.post("/messages/count_tokens", **_COUNT)
    async def count_tokens(request: Request) -> Response:
        """How many tokens a message would be written after."""
        asked = read_counted(await read_fields(request), models)
        with spelled(NAMES):
            token_ids = await asyncio.to_thread(asked.call.served.engine.tokenize, asked.prompts[0])
        return JSONReply({"input_tokens": len(token_ids)})

    return router
