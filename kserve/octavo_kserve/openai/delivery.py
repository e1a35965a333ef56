"""Brings responses to clients: in one piece or as server-sent events.

Whoever cancels it, because the client has left, ends the request. Knows no field of a request or a response.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import octavo
from octavo_kserve.openai.generation import Outputs, generate
from octavo_kserve.openai.request import GenerateRequest
from octavo_kserve.openai.route import log_bug
from octavo_kserve.openai.spelling import spelled
from octavo_kserve.openai.writer import Writer
from octavo_kserve.replies import JSONReply, error_response, json_bytes

_DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies that gather a response before they pass it on let such a one through.
    (b"x-accel-buffering", b"no"),
]


class Delivery(Response):
    """Runs one request when the server asks for the response to be sent, and sends what it brings.

    The status waits for the first output, so that a request that fails before it gets the status that says why. What
    fails later is told by an event.
    """

    def __init__(self, request: GenerateRequest, writer: Writer) -> None:
        super().__init__()
        self._request = request
        self._writer = writer
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole response."""
        try:
            with spelled(self._writer.names):
                await self._run(scope, receive, send)
        except Exception as error:
            log_bug(error)
            if not self._begun:
                await error_response(scope["path"], error)(scope, receive, send)
            else:
                await self._end(send, self._writer.failure(error))

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._request.call.streaming is not None:
            await self._stream(send)
        else:
            response = JSONReply(await self._whole())
            self._begun = True
            await response(scope, receive, send)

    def _generate(self) -> AbstractAsyncContextManager[Outputs]:
        return generate(self._request.call, self._request.prompts, self._request.params)

    async def _whole(self) -> dict[str, Any]:
        found: dict[int, octavo.RequestOutput] = {}
        async with self._generate() as outputs:
            async for i, output in outputs:
                if i in found:
                    found[i].extend(output)
                else:
                    found[i] = output
        return self._writer.whole([found[i] for i in range(len(self._request.prompts))])

    async def _stream(self, send: Send) -> None:
        async with self._generate() as outputs:
            async for i, output in outputs:
                chunks = self._writer.chunks(i, output)
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                if chunks:
                    await send(_body(self._events(chunks), more=True))
        await self._end(send, self._writer.last_chunks())

    async def _end(self, send: Send, chunks: list[dict[str, Any]]) -> None:
        done = b"" if self._writer.names_events else _DONE
        await send(_body(self._events(chunks) + done, more=False))

    def _events(self, chunks: list[dict[str, Any]]) -> bytes:
        return b"".join(map(self._event, chunks))

    def _event(self, chunk: dict[str, Any]) -> bytes:
        name = b"event: %s\n" % chunk["type"].encode() if self._writer.names_events else b""
        return name + b"data: " + json_bytes(chunk) + b"\n\n"


def _body(data: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
