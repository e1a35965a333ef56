"""Keys: which open, and what stays open without one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_kserve.access import ApiKeys, KeyCheck


@pytest.mark.parametrize("value", ["Bearer a", "bearer a", "Bearer  b "])
def test_each_key_opens(value: str) -> None:
    assert ApiKeys(["a", "b"]).allow(value)


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer ", "Bearer c", "Bearer A", "Basic a", "a", "Bearer a b"])
def test_nothing_else_does(value: str | None) -> None:
    assert not ApiKeys(["a", "b"]).allow(value)


def test_a_server_without_keys_is_open() -> None:
    assert ApiKeys().allow(None)


def test_the_keys_themselves_are_not_kept() -> None:
    assert "secret" not in repr(vars(ApiKeys(["secret"])))


def ask(path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> list[Any]:
    """What a request is told by an application behind the key "a", as ASGI messages; b"in" from the application."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(b"in")

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(KeyCheck(app, ApiKeys(["a"]))({"type": kind, "path": path, "headers": headers}, receive, send))
    return sent


@pytest.mark.parametrize("path", ["/", "/health", "/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"])
def test_health_needs_no_key(path: str) -> None:
    assert ask(path) == [b"in"]


@pytest.mark.parametrize("path", ["/metrics", "/v2/models/m/x/ready", "/v2/models/m/ready/", "/v1/models/m", "//", ""])
def test_everything_else_does(path: str) -> None:
    assert ask(path)[0]["status"] == 401
    assert ask(path, (b"authorization", b"Bearer a")) == [b"in"]


def test_of_two_headers_the_first_counts() -> None:
    headers = (b"authorization", b"Bearer x"), (b"authorization", b"Bearer a")
    assert ask("/metrics", *headers)[0]["status"] == 401


def test_a_key_may_come_as_clients_of_anthropic_send_it() -> None:
    assert ask("/v1/messages", (b"x-api-key", b"a")) == [b"in"]
    for other in (b"Bearer x", b"Basic x", b""):
        assert ask("/v1/messages", (b"authorization", other), (b"x-api-key", b"a")) == [b"in"]
        assert ask("/v1/messages", (b"authorization", other), (b"x-api-key", b"x"))[0]["status"] == 401
    assert ask("/v1/messages", (b"authorization", b"Bearer a"), (b"x-api-key", b"x")) == [b"in"]
    for headers in (((b"x-api-key", b"x"),), ((b"x-api-key", b""),)):
        assert ask("/v1/messages", *headers)[0]["status"] == 401
    assert b'"type":"authentication_error"' in ask("/openai/v1/messages")[1]["body"]


def test_no_other_protocol_comes_in() -> None:
    assert ask("/", kind="websocket")[0]["type"] == "websocket.close"
