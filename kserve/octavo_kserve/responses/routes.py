"""The route of OpenAI's Responses API. Knows no field of a body."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from octavo_kserve.described import answers, described
from octavo_kserve.openai.delivery import Delivery
from octavo_kserve.openai.route import Route, read_fields
from octavo_kserve.responses.request import read_response
from octavo_kserve.responses.writer import ResponseWriter
from octavo_kserve.served_model import Models

_ERRORS = (400, 404, 408, 413, 422, 429, 500, 503)
_RESPONSE: Any = described("Respond", answers("Response", "ResponseEvent"), "ResponseRequest", _ERRORS, style="Error")


def create_responses_router(models: Models) -> APIRouter:
    """`/responses` without a prefix, as `octavo_kserve.openai` has the other routes."""
    router = APIRouter(route_class=Route, tags=["OpenAI"])

    @router.post("/responses", **_RESPONSE)
    async def create_response(request: Request) -> Response:
        """The next items of a conversation, of which nothing is stored."""
        asked = read_response(await read_fields(request), models)
        return Delivery(asked.generate, ResponseWriter(asked))

    return router
