"""The Triton server's generate extension: one JSON object in, one out, or a stream of them as server-sent events.

Knows no tensor and no SDK type.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

import octavo
from octavo.v2 import Array, RawRequest
from octavo.v2 import Request as Call
from octavo_kserve.calls import as_json, complete, facts_of, raw_request, read_call, responses, submit
from octavo_kserve.described import answers, described
from octavo_kserve.errors import error_reply
from octavo_kserve.served_model import Models

logger = logging.getLogger(__name__)

# What the v2 protocol calls the version of a model; there is only one.
MODEL_VERSION = "1"
# Proxies that gather a response before they pass it on let such a one through.
_ERRORS = (400, 404, 408, 413, 429, 500, 503)
_WHOLE = described("Generate", answers("Generated"), "GenerateRequest", errors=_ERRORS)
_STREAM = described("Generate, as a stream", answers("", "GeneratedEvent"), "GenerateRequest", errors=_ERRORS)
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """The outputs of a request as events. However it ends, and if it never begins, so does the request."""

    def __init__(self, name: str, stream: octavo.RequestStream, call: Call) -> None:
        super().__init__(_events(name, stream, call), headers=_HEADERS, media_type="text/event-stream")
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events. A client may have left before the first: then nobody has begun to read the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.cancel()


def create_generate_router(models: Models) -> APIRouter:
    """Routes below /v2/models. Errors before the first response are raised: the app's handler tells them."""
    router = APIRouter(tags=["generate"])

    async def generate(name: str, request: Request) -> Response:
        model = models.find(name)
        call = read_call(await _raw(request), facts_of(model, name), streams=False)
        return JSONResponse(_body(name, await complete(model, call)))

    async def generate_stream(name: str, request: Request) -> Response:
        model = models.find(name)
        call = read_call(await _raw(request), facts_of(model, name), streams=True)
        stream = await submit(model, call)
        return EventStream(name, stream, call)

    for path in ("/v2/models/{name}/", f"/v2/models/{{name}}/versions/{MODEL_VERSION}/"):
        router.add_api_route(f"{path}generate", generate, methods=["POST"], **_WHOLE)
        router.add_api_route(f"{path}generate_stream", generate_stream, methods=["POST"], **_STREAM)
    return router


async def _raw(request: Request) -> RawRequest:
    return raw_request(await read_json_object(request), request.headers.get("x-request-id", ""))


async def read_json_object(request: Request) -> dict[str, Any]:
    """The body, whatever content type it claims to have. Raises InvalidRequest."""
    try:
        text = (await request.body()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise octavo.InvalidRequest("body", f"byte {error.start}", "UTF-8 text") from None
    body = octavo.parse_json("body", text)
    if not isinstance(body, dict):
        raise octavo.InvalidRequest("body", body, "a JSON object")
    return body


def _body(name: str, tensors: Mapping[str, Array]) -> dict[str, Any]:
    return {"model_name": name, "model_version": MODEL_VERSION} | as_json(tensors)


async def _events(name: str, stream: octavo.RequestStream, call: Call) -> AsyncIterator[str]:
    """Whatever happens, the last event tells how the request ended."""
    try:
        async for tensors in responses(stream, call):
            yield _event(_body(name, tensors))
    except Exception as error:
        if not isinstance(error, octavo.OctavoError):
            logger.exception("a stream broke")
        yield _event({"error": error_reply(error).text})


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
