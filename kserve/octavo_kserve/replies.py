"""An error as an HTTP answer, in the shape that clients of the path expect. Knows the paths' families, no route."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import Response

from octavo_kserve.errors import ErrorReply, error_reply

_KSERVE_VERBS = (":predict", ":explain")
# Where clients of Cohere's API look for the route.
_OF_OTHERS = ("/v2/rerank",)
_ANTHROPIC = re.compile(r"(/openai)?/v1/messages(/.*)?")
# By status; those that are not here are `invalid_request_error` below 500 and `api_error` from there on.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def json_bytes(value: object) -> bytes:
    """JSON as short as it gets. Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has.

    Raises ValueError for NaN and infinity, which JSON has not.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class JSONReply(Response):
    """A JSON body with a status."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json_bytes(content)


def error_response(path: str, error: BaseException) -> JSONReply:
    """`{"error": text}` where clients of KServe ask, Anthropic's object where theirs do, else the OpenAI API's."""
    reply = error_reply(error)
    if is_kserve(path):
        return JSONReply({"error": reply.text}, reply.status, reply.headers)
    if is_anthropic(path):
        # Their API knows one status for what is wrong with a body.
        status = 400 if reply.status == 422 else reply.status
        return JSONReply(anthropic_error(reply), status, reply.headers)
    return JSONReply(reply.body, reply.status, reply.headers)


def is_kserve(path: str) -> bool:
    """Whether clients of KServe's own protocols ask there."""
    return (path.startswith("/v2") and path not in _OF_OTHERS) or path.endswith(_KSERVE_VERBS)


def is_anthropic(path: str) -> bool:
    """Whether clients of Anthropic's API ask there."""
    return _ANTHROPIC.fullmatch(path) is not None


def anthropic_error(reply: ErrorReply) -> dict[str, Any]:
    """The body of an error, and the event of one in mid-stream."""
    otherwise = "invalid_request_error" if reply.status < 500 else "api_error"
    error = {"type": ANTHROPIC_TYPES.get(reply.status, otherwise), "message": reply.text}
    return {"type": "error", "error": error if reply.details is None else error | {"details": reply.details}}
