"""Brings responses to clients: in one piece or as server-sent events.

Whoever cancels it, because the client has left, ends the request. Knows no field of a request or a response.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import octavo
from octavo_kserve.errors import error_reply
from octavo_kserve.openai.encoder import Encoder
from octavo_kserve.openai.generation import generate
from octavo_kserve.openai.request import GenerateRequest

logger = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"


def json_bytes(value: object) -> bytes:
    """JSON as short as it gets. Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class JSONReply(Response):
    """A JSON body with a status."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json_bytes(content)


def error_response(error: BaseException) -> JSONReply:
    """The answer to a request that failed. Of a bug, the log has the stack."""
    if not isinstance(error, octavo.OctavoError):
        logger.error("a request failed inside the server", exc_info=error)
    reply = error_reply(error)
    return JSONReply(reply.body, reply.status, reply.headers)


class Delivery(Response):
    """Runs one request when the server asks for the response to be sent, and sends what it brings.

    The status waits for the first output, so that a request that fails before it gets the status that says why. What
    fails later is told by an event.
    """

    def __init__(self, request: GenerateRequest, encoder: Encoder) -> None:
        super().__init__()
        self._request = request
        self._encoder = encoder
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole response."""
        try:
            await self._run(scope, receive, send)
        except Exception as error:
            response = error_response(error)
            if not self._begun:
                await response(scope, receive, send)
            else:
                await send(_body(b"data: " + bytes(response.body) + b"\n\n" + _DONE, more=False))

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._request.call.streaming is not None:
            await self._stream(send, self._request.call.streaming.usage_at_end)
        else:
            response = JSONReply(await self._whole())
            self._begun = True
            await response(scope, receive, send)

    async def _whole(self) -> dict[str, Any]:
        found: dict[int, octavo.RequestOutput] = {}
        async with generate(self._request) as outputs:
            async for i, output in outputs:
                if i in found:
                    found[i].extend(output)
                else:
                    found[i] = output
        return self._encoder.whole([found[i] for i in range(len(self._request.prompts))])

    async def _stream(self, send: Send, usage_at_end: bool) -> None:
        async with generate(self._request) as outputs:
            async for i, output in outputs:
                chunks = self._encoder.chunks(i, output)
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                if chunks:
                    await send(_body(b"".join(map(_event, chunks)), more=True))
        last = _event(self._encoder.last_chunk()) if usage_at_end else b""
        await send(_body(last + _DONE, more=False))


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that gather a response before they pass it on let such a one through.
    (b"x-accel-buffering", b"no"),
]


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json_bytes(chunk) + b"\n\n"


def _body(data: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
