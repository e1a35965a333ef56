"""Route: a route that reads its body by itself, and answers its own errors. Knows no path and no field."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

import octavo
from octavo_kserve.openai.fields import Fields
from octavo_kserve.replies import error_response

logger = logging.getLogger(__name__)


class Route(APIRoute):
    """Answers its own errors, so that the application needs no handlers for them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, made safe."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                log_bug(error)
                return error_response(request.url.path, error)

        return answer


async def read_fields(request: Request) -> Fields:
    """The body's fields, whatever content type the client has named."""
    return Fields.of_body(await request.body())


def log_bug(error: BaseException) -> None:
    """A client is told nothing of what is not ours: the log has the stack."""
    if not isinstance(error, octavo.OctavoError):
        logger.error("a request failed inside the server", exc_info=error)
