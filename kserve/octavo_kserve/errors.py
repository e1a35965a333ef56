"""The error table: what a client of this host is told, and with which status, for each of Octavo's errors.

Knows no route and no framework: a reply is a status, headers and a body that JSON can hold.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import octavo

_INVALID, _SERVER = "invalid_request_error", "server_error"
_PATH_STEP = re.compile(r"[^.\[\]]+")


class UnknownModel(octavo.RequestError):
    """No model of this name is served."""

    parameter = "model"

    def __init__(self, name: str) -> None:
        super().__init__(f"model: {name!r:.80} does not exist; GET /v1/models lists those that do")


class Unauthorized(octavo.RequestError):
    """The request carries no API key that this server knows."""

    def __init__(self) -> None:
        super().__init__("a valid API key is required: send the header `Authorization: Bearer KEY`")


class ModelLoading(octavo.EngineError):
    """The model has not been ready yet. `retry_after_s` is when to ask again, in seconds."""

    retry_after_s = 5.0

    def __init__(self, name: str, elapsed_s: float) -> None:
        super().__init__(f"model: {name!r:.80} is loading, for {elapsed_s:.0f} s so far; requests are taken afterwards")


class NoSuchRoute(octavo.RequestError):
    """No route has this path."""

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no route {path!r:.80}")


class NoSuchMethod(octavo.RequestError):
    """There is such a route, but not for this HTTP method."""

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method!r:.20} is not for this route; it allows {allowed}")


class BodyTooLarge(octavo.RequestError):
    """The body, or the headers, are larger than this server reads."""


class Unprocessable(octavo.InvalidRequest):
    """An InvalidRequest that clients of KServe expect FastAPI's status for."""


class NoThreads(octavo.InvalidRequest):
    """A request that counts on a server that remembers. Clients of Anthropic's threads read `details`, and then send
    everything anew with each turn."""

    details: ClassVar[dict[str, Any]] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


class ClientGone(octavo.RequestCancelled):
    """The client closed its connection, so nobody reads this."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection")


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one class of errors is told: HTTP status, and `type` and `code` as the OpenAI API names them."""

    status: int
    type: str
    code: str


ERROR_TABLE: dict[type[octavo.OctavoError], ErrorRow] = {
    octavo.OctavoError: ErrorRow(500, _SERVER, "internal_error"),
    octavo.RequestError: ErrorRow(400, _INVALID, "invalid_request"),
    octavo.InvalidRequest: ErrorRow(400, _INVALID, "invalid_value"),
    Unprocessable: ErrorRow(422, _INVALID, "invalid_value"),
    NoThreads: ErrorRow(400, _INVALID, "invalid_value"),
    octavo.PromptTooLong: ErrorRow(400, _INVALID, "context_length_exceeded"),
    Unauthorized: ErrorRow(401, _INVALID, "invalid_api_key"),
    UnknownModel: ErrorRow(404, _INVALID, "model_not_found"),
    NoSuchRoute: ErrorRow(404, _INVALID, "not_found"),
    NoSuchMethod: ErrorRow(405, _INVALID, "method_not_allowed"),
    octavo.DeadlineExceeded: ErrorRow(408, "timeout_error", "deadline_exceeded"),
    BodyTooLarge: ErrorRow(413, _INVALID, "request_too_large"),
    octavo.Overloaded: ErrorRow(429, "rate_limit_error", "rate_limit_exceeded"),
    ClientGone: ErrorRow(499, _INVALID, "client_closed_request"),
    # To a client that still listens, it was the server that gave up: it is shutting down.
    octavo.RequestCancelled: ErrorRow(503, _SERVER, "service_unavailable"),
    octavo.EngineError: ErrorRow(500, _SERVER, "internal_error"),
    octavo.RequestFailed: ErrorRow(500, _SERVER, "internal_error"),
    ModelLoading: ErrorRow(503, _SERVER, "service_unavailable"),
    octavo.ModelLoadError: ErrorRow(503, _SERVER, "service_unavailable"),
    octavo.EngineDead: ErrorRow(503, _SERVER, "service_unavailable"),
}


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A whole answer: `body` has the object `error`, and for a value that was refused also FastAPI's list `detail`.

    `details` is what else some clients read, for protocols that have a place for it.
    """

    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    details: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """One line, for protocols whose errors are a text."""
        message: str = self.body["error"]["message"]
        return message


def error_reply(error: BaseException) -> ErrorReply:
    """The reply for any exception. Of one that is not ours nothing is shown: it may hold paths and values."""
    if not isinstance(error, octavo.OctavoError):
        return _reply(ERROR_TABLE[octavo.OctavoError], "internal error; the server's log has the details", None)
    row = next(ERROR_TABLE[c] for c in type(error).__mro__ if c in ERROR_TABLE)
    # A client's own words may be in it: what UTF-8 cannot hold could not be sent.
    text = " ".join(str(error).splitlines()).encode("utf-8", "backslashreplace").decode("utf-8")
    reply = _reply(row, text, getattr(error, "parameter", None), getattr(error, "details", None))
    if isinstance(error, octavo.Overloaded | ModelLoading):
        reply.headers["Retry-After"] = str(max(math.ceil(error.retry_after_s), 1))
    if isinstance(error, Unauthorized):
        reply.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, octavo.InvalidRequest):
        reply.body["detail"] = [{"loc": _location(error.parameter), "msg": text, "type": "value_error"}]
    return reply


def _reply(row: ErrorRow, text: str, parameter: str | None, details: dict[str, Any] | None = None) -> ErrorReply:
    error = {"message": text, "type": row.type, "param": parameter, "code": row.code}
    return ErrorReply(row.status, {}, {"error": error}, details)


def _location(parameter: str) -> list[str | int]:
    """The way to a value from the body on: "messages[0].role" is ["body", "messages", 0, "role"]."""
    steps = [] if parameter == "body" else _PATH_STEP.findall(parameter)
    return ["body", *(int(step) if step.isdecimal() else step for step in steps)]
