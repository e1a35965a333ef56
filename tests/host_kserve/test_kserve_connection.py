"""One exchange, with a client that sends and leaves as the test wants it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from octavo_kserve.connection import ConnectionGuard

PART = {"type": "http.request", "body": b"x" * 10, "more_body": True}
LAST = {"type": "http.request", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}
START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b"", "more_body": False}


def exchange(app: Any, *messages: Any, headers: Any = ()) -> list[Any]:
    """What is sent to a client that sends these messages; bodies of 20 bytes and headers of 100 are allowed."""
    waiting, sent = list(messages), []

    async def receive() -> Any:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v2/x", "raw_path": b"/v2/x", "query_string": b"", "headers": list(headers)}

    async def run() -> None:
        task = asyncio.create_task(ConnectionGuard(app, 20, 100)(scope, receive, send))
        _, still_running = await asyncio.wait({task}, timeout=10)
        assert not still_running
        task.result()

    asyncio.run(run())
    return sent


async def read_all(receive: Any) -> None:
    """As an application does."""
    while (await receive()).get("more_body"):
        pass


def refusal(sent: list[Any]) -> tuple[int, str]:
    """The status and the text of an answer."""
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the body and answers."""
    await read_all(receive)
    await send(START)
    await send(END)


def test_a_request_within_the_limits_is_answered() -> None:
    assert exchange(answer, PART, PART, LAST) == [START, END]


def test_a_body_that_grows_too_large_is_refused_while_it_comes() -> None:
    assert refusal(exchange(answer, PART, PART, PART, PART)) == (413, "the request's body may have 20 bytes at most")


@pytest.mark.parametrize(("header", "word"), [((b"content-length", b"21"), "body"), ((b"a", b"x" * 100), "headers")])
def test_what_the_headers_tell_is_refused_unread(header: tuple[bytes, bytes], word: str) -> None:
    status, text = refusal(exchange(answer, headers=[header]))
    assert status == 413 and word in text


def test_a_client_that_leaves_cancels_the_handler_that_works_for_it() -> None:
    ended = []

    async def work(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    assert refusal(exchange(work, LAST, GONE)) == (499, "the client closed the connection")
    assert ended == [True]


def test_a_client_that_leaves_within_its_body_cancels_the_handler_that_reads_it() -> None:
    ended = []

    async def work(scope: Any, receive: Any, send: Any) -> None:
        try:
            await read_all(receive)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    assert refusal(exchange(work, PART, GONE))[0] == 499
    assert ended == [True]


def test_a_response_that_has_begun_is_cut_where_its_client_leaves() -> None:
    async def work(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        await send(START)
        await asyncio.Event().wait()

    assert exchange(work, LAST, GONE) == [START]


def test_what_follows_a_complete_response_is_not_cancelled() -> None:
    async def work(scope: Any, receive: Any, send: Any) -> None:
        await answer(scope, receive, send)
        assert await receive() == GONE

    assert exchange(work, LAST, GONE) == [START, END]
