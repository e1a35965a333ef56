"""A client that leaves before the first event."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from octavo import RequestStream
from octavo.v2 import ModelFacts
from octavo_kserve.calls import raw_request, read_call
from octavo_kserve.generate import EventStream


def test_a_stream_whose_response_never_begins_is_cancelled() -> None:
    cancelled = threading.Event()
    call = read_call(raw_request({"text_input": "x", "stream": True}), ModelFacts("m", decoupled=True), streams=True)
    response = EventStream("m", RequestStream("r", cancelled.set), call)

    async def gone(message: Any) -> None:
        raise asyncio.CancelledError

    async def receive() -> Any:
        return await asyncio.Event().wait()

    with pytest.raises(BaseException):  # noqa: B017  # whatever the server library makes of it
        asyncio.run(response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, gone))
    assert cancelled.is_set()
