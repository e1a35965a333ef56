"""One HTTP request's connection: how much may come over it, and that work for a client that left ends at once.

Knows no route and no model.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from octavo_kserve.errors import BodyTooLarge, ClientGone
from octavo_kserve.replies import error_response

logger = logging.getLogger(__name__)

# What a header line has beside its name and its value: ": " and the line end.
_LINE_BYTES = 4


class ConnectionGuard:
    """ASGI middleware: bounds what a request may hold, and cancels its handler when its client goes away.

    The one place of this server that watches clients: a handler that was cancelled ends its engine request.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_header_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_header_bytes = max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app for one request, or answers 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._max_body_bytes)
        error = self._complaint(scope)
        if error is None:
            await exchange.run(self._app)
        else:
            await exchange.refuse(error)

    def _complaint(self, scope: Scope) -> BodyTooLarge | None:
        """What the headers alone tell."""
        num_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        for name, value in scope["headers"]:
            num_bytes += len(name) + len(value) + _LINE_BYTES
            if name == b"content-length" and int(value) > self._max_body_bytes:
                return _too_large("body", self._max_body_bytes)
        return _too_large("headers", self._max_header_bytes) if num_bytes > self._max_header_bytes else None


class _Exchange:
    """One request and its response. After the body has come, the client's end of the connection is watched."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body_bytes = max_body_bytes
        self._num_bytes = 0
        self._error: BodyTooLarge | ClientGone | None = None
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._started = self._complete = False

    async def run(self, app: ASGIApp) -> None:
        self._task = asyncio.create_task(self._call(app))
        try:
            await self._task
        except asyncio.CancelledError:
            if self._error is None:
                raise
            logger.debug("the handler of %s was cancelled: %s", self._scope["path"], self._error)
        finally:
            if self._watch is not None:
                self._watch.cancel()
        if self._error is not None and not self._started:
            await self.refuse(self._error)

    async def refuse(self, error: BodyTooLarge | ClientGone) -> None:
        response = error_response(self._scope["path"], error)
        # What is still on its way would be read for nothing.
        response.headers["Connection"] = "close"
        await response(self._scope, self._receive, self._send)

    async def _call(self, app: ASGIApp) -> None:
        await app(self._scope, self._take, self._put)

    async def _take(self) -> Message:
        """The app's `receive`."""
        if self._watch is not None:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self._cancel(ClientGone())
        elif self._num_bytes > self._max_body_bytes:
            self._cancel(_too_large("body", self._max_body_bytes))
        if self._error is not None:
            # Cancelled here, or in whichever part of the app waits for this one.
            await asyncio.Event().wait()
        if not message.get("more_body", False):
            self._watch = asyncio.create_task(self._watch_client())
        return message

    async def _put(self, message: Message) -> None:
        """The app's `send`."""
        self._started = True
        self._complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def _watch_client(self) -> None:
        # After the body there is nothing to come but the end, which a complete response is as well.
        await self._receive()
        self._gone.set()
        if not self._complete:
            self._cancel(ClientGone())

    def _cancel(self, error: BodyTooLarge | ClientGone) -> None:
        """Ends the handler; the client, if it is still there, is told the error unless its answer has begun."""
        assert self._task is not None
        self._error = error
        self._task.cancel()


def _too_large(what: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request's {what} may have {limit} bytes at most")


def header_limited(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, which by itself reads headers without end: one that hangs up on a client that sends them."""

    class HeaderLimitedProtocol(HttpToolsProtocol):
        """Counts what has come of headers, or of the trailers behind a body in chunks, that are not complete.

        Complete headers, and bodies, are the middleware's.
        """

        _num_header_bytes = 0
        _is_done = False
        _has_headers = False

        def on_message_begin(self) -> None:
            """Headers begin."""
            self._has_headers = False
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            """One header. What stands behind the body is none: an API key there, or a length, must not count."""
            if not self._has_headers:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """Headers have come whole."""
            self._is_done = self._has_headers = True
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """A part of a body has come."""
            self._is_done = True
            super().on_body(body)

        def on_message_complete(self) -> None:
            """A request has come whole, trailers and all."""
            self._is_done = True
            super().on_message_complete()

        def data_received(self, data: bytes) -> None:
            """Reads on, or hangs up."""
            self._is_done = False
            super().data_received(data)
            self._num_header_bytes = 0 if self._is_done else self._num_header_bytes + len(data)
            if self._num_header_bytes > max_header_bytes and not self.transport.is_closing():
                logger.info("a client sent headers of more than %d bytes", max_header_bytes)
                self.transport.close()

    return HeaderLimitedProtocol
