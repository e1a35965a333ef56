"""How a route tells the server's OpenAPI document what it reads and answers, and the words of JSON schema for it.

For readers and tools only: what is allowed is decided where a value is read. Knows no route.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

Schema = dict[str, Any]

_JSON, _EVENTS, _BINARY = "application/json", "text/event-stream", "application/octet-stream"
STATUSES = {
    400: "A value is not allowed, or the prompt is too long for the model.",
    401: "The request has no API key that this server knows.",
    404: "No model of this name is served.",
    408: "The request's own time limit ran out.",
    413: "The body, or the headers, are too large.",
    422: "A field is given without the one that it belongs to, or `seed` is not of 64 bits.",
    429: "The queue is full.",
    500: "The request broke inside the engine.",
    501: "This server does not do that.",
    503: "The model is not ready, or the server is shutting down. Retry-After is there while one loads.",
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
_HEADERS = {401: {"WWW-Authenticate": {"schema": {"const": "Bearer"}}}, 429: _RETRY, 503: _RETRY}


def nullable(**schema: Any) -> Schema:
    """Null means the same as nothing at all."""
    return schema | {"type": [schema["type"], "null"]}


def number(low: float, high: float) -> Schema:
    """A number in [low, high], or null."""
    return nullable(type="number", minimum=low, maximum=high)


def integer(low: int, high: int | None = None) -> Schema:
    """A whole number in [low, high], or null."""
    return nullable(type="integer", minimum=low) | ({} if high is None else {"maximum": high})


def array(**items: Any) -> Schema:
    """A list, or null."""
    return nullable(type="array", items=items)


def record(properties: dict[str, Schema], optional: Iterable[str] = (), **more: Any) -> Schema:
    """An object that has all of these members but the optional ones, and may have others."""
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required} | more


def ref(name: str) -> Schema:
    """The schema of this name among the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def described(
    summary: str, answer: dict[str, Any], body: str = "", errors: Iterable[int] = (), style: str = "ErrorText"
) -> dict[str, Any]:
    """Arguments of a route: what it answers with 200, the name of its body's schema, the statuses of its errors.

    `style` names the schema of an error's body; empty for errors without one.
    """
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "It is done."} | answer}
    responses |= {status: error(status, style) for status in errors}
    found: dict[str, Any] = {"summary": summary, "responses": responses}
    if body:
        found["openapi_extra"] = {"requestBody": {"required": True, "content": {_JSON: {"schema": ref(body)}}}}
    # The classes by which FastAPI would say something of its own.
    return found | {"response_class": Response, "response_model": None}


def error(status: int, style: str) -> dict[str, Any]:
    """One of a route's errors."""
    found: dict[str, Any] = {"description": STATUSES[status]}
    if style:
        found["content"] = {_JSON: {"schema": ref(style)}}
    return found | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def answers(whole: str = "", events: str = "", last: str = "") -> dict[str, Any]:
    """A body that is JSON of the one schema, or a stream of server-sent events of the other, and then of `last`."""
    content: dict[str, Any] = {}
    if whole:
        content[_JSON] = {"schema": ref(whole)}
    if events:
        data = {"type": "string", "contentMediaType": _JSON, "contentSchema": ref(events)}
        event = record({"data": {"anyOf": [{"const": last}, data]} if last else data})
        content[_EVENTS] = {"itemSchema": event}
    return {"content": content}


def also_binary(description: dict[str, Any]) -> dict[str, Any]:
    """The same route, whose bodies may be binary behind their JSON."""
    for each in (description["openapi_extra"]["requestBody"], description["responses"][200]):
        each["content"][_BINARY] = {"schema": {"type": "string", "format": "binary"}}
    return description
