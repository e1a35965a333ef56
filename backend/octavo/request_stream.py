"""RequestStream: the reader's end of one request. Knows no engine: outputs are put in on one side, read on the other.

What a slow reader has not taken yet is merged into one output.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from octavo.errors import OctavoError
from octavo.outputs import RequestOutput

logger = logging.getLogger(__name__)

OnSomething = Callable[["RequestStream"], None]


class RequestStream:
    """Iterate it, with `for` or `async for`, in one place at a time; each item is what is new since the last.

    Ends after the output with `finished=True`, or by raising why the request failed, after what came before.
    """

    def __init__(self, request_id: str, cancel: Callable[[], None]) -> None:
        self.request_id = request_id
        self._cancel: Callable[[], None] | None = cancel
        self._changed = threading.Condition(threading.Lock())
        self._pending: RequestOutput | None = None
        self._ended = False
        self._error: OctavoError | None = None
        self._on_something: OnSomething | None = None
        self._waiter: asyncio.Future[None] | None = None

    def cancel(self) -> None:
        """Ends the request wherever it is; the reader then gets RequestCancelled. Without effect on an ended one."""
        cancel = self._cancel
        if cancel is not None:
            cancel()

    def take(self, timeout_s: float | None = None) -> RequestOutput | None:
        """What has come since the last take, merged; None when the stream has ended. Waits for something.

        Raises TimeoutError when nothing came in `timeout_s` (0 only looks), or what ended the request: that once.
        """
        with self._changed:
            if not self._changed.wait_for(self._has_something, timeout_s):
                raise TimeoutError(f"no output of request {self.request_id} within {timeout_s} s")
            output = self._take()
            callback = self._on_something if output is not None and self._error is not None else None
        if callback is not None:
            # The error that follows was not announced while this output stood before it.
            _call(callback, self)
        return output

    def notify(self, callback: OnSomething | None) -> None:
        """Calls `callback(stream)` each time the stream has something again after it had nothing, its end included.

        At once if there is something already. Called from the engine's front thread: it must not block.
        """
        with self._changed:
            self._on_something = callback
            now = self._has_something()
        if callback is not None and now:
            _call(callback, self)

    def put(self, output: RequestOutput | None, ended: bool = False, error: OctavoError | None = None) -> None:
        """For the engine: adds an output, or the end. Nothing may follow an end."""
        with self._changed:
            assert not self._ended, "a stream ends once"
            callback = None if self._has_something() else self._on_something
            if self._pending is None:
                self._pending = output
            elif output is not None:
                self._pending.extend(output)
            if ended:
                self._ended, self._error, self._cancel = True, error, None
            waiter, self._waiter = self._waiter, None
            self._changed.notify()
        if waiter is not None:
            _wake(waiter)
        if callback is not None:
            _call(callback, self)

    def __iter__(self) -> Iterator[RequestOutput]:
        """The stream itself."""
        return self

    def __next__(self) -> RequestOutput:
        """Waits for what is new."""
        output = self.take()
        if output is None:
            raise StopIteration
        return output

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        """The stream itself."""
        return self

    async def __anext__(self) -> RequestOutput:
        """Waits, in whichever loop is running, for what is new."""
        while True:
            with self._changed:
                if self._has_something():
                    output = self._take()
                    break
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            await waiter
        if output is None:
            raise StopAsyncIteration
        return output

    def _has_something(self) -> bool:
        return self._pending is not None or self._ended

    def _take(self) -> RequestOutput | None:
        if self._pending is not None:
            output, self._pending = self._pending, None
            return output
        error, self._error = self._error, None
        if error is not None:
            raise error
        return None


def _wake(waiter: asyncio.Future[None]) -> None:
    try:
        waiter.get_loop().call_soon_threadsafe(_resolve, waiter)
    except RuntimeError:
        # The reader's loop was closed: nobody waits any more.
        logger.debug("a stream's reader went away with its event loop")


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _call(callback: OnSomething, stream: RequestStream) -> None:
    try:
        callback(stream)
    except Exception:
        logger.exception("the callback of request %s broke", stream.request_id)
