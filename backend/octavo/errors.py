"""Everything that can go wrong, split by whose fault it is.

    OctavoError
      RequestError            the caller's fault: this request fails, the others go on
        InvalidRequest        names the parameter, its value and what is allowed
        PromptTooLong         can never fit, whatever else runs
        Overloaded            the queue is full; says when to retry
        DeadlineExceeded
        RequestCancelled
      EngineError             ours
        ModelLoadError        names the file or key
        RequestFailed         this request broke inside the engine; the engine goes on
        EngineDead            after the restart limit

Texts are shown to clients: they never hold a stack or a shared-memory name.
"""

from __future__ import annotations

_SHOWN_CHARACTERS = 80


class OctavoError(Exception):
    """Root of every error that Octavo raises on purpose."""


class RequestError(OctavoError):
    """The caller's fault. The request fails, the engine goes on."""


class InvalidRequest(RequestError):
    """A parameter has a value that is not allowed."""

    def __init__(self, parameter: str, value: object, allowed: str) -> None:
        self.parameter = parameter
        self.value = value
        self.allowed = allowed
        super().__init__(f"{parameter}: {shorten(value)} is not allowed; expected {allowed}")

    @classmethod
    def worded(cls, parameter: str, text: str) -> InvalidRequest:
        """One whose whole text is given, as another process wrote it."""
        error = cls(parameter, None, text)
        error.args = (text,)
        return error


class PromptTooLong(RequestError):
    """The request needs more tokens than the model or the KV cache can ever hold."""


class Overloaded(RequestError):
    """The queue is full. `retry_after_s` is an estimate of when a place is free, in seconds."""

    def __init__(self, num_waiting: int, limit: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"Exceeds maximum queue size: {num_waiting} requests are waiting, at most {limit} may; "
            f"retry in {retry_after_s:.0f} s"
        )


class DeadlineExceeded(RequestError):
    """The request's own time limit ran out."""

    def __init__(self, message: str = "Request timeout expired") -> None:
        super().__init__(message)


class RequestCancelled(RequestError):
    """The caller went away, or the server is shutting down."""

    def __init__(self, message: str = "Request was cancelled") -> None:
        super().__init__(message)


class EngineError(OctavoError):
    """Our fault, or the machine's."""


class ModelLoadError(EngineError):
    """A model cannot be served: the message names the file or the key, and what to do."""


class RequestFailed(EngineError):
    """One request broke inside the engine (numbers that are not finite, say)."""


class EngineDead(EngineError):
    """The engine process died more often than it may be restarted."""


def shorten(value: object) -> str:
    """`repr(value)`, cut so that a hostile value cannot fill a log line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Nested about as deeply as JSON is read, or a whole number of thousands of digits.
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
