"""The error table: what a Triton server's client is told, and under which code, for each of Octavo's errors.

Knows no server object: codes are names of TritonError's attributes.
"""

from __future__ import annotations

from dataclasses import dataclass

import octavo

# Clients of the vLLM backend look for this prefix.
PREFIX = "Error generating stream: "


class UnhealthyEngine(octavo.EngineDead):
    """The engine is dead for good, and the model's health check has it unloaded."""

    def __init__(self) -> None:
        super().__init__("Model is unavailable due to unhealthy vLLM engine")


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How one class of errors is told: the TritonError code, and whether the text carries the prefix."""

    code: str
    prefixed: bool = True


# The server's own texts ("Request timeout expired", "Exceeds maximum queue size", ...) have no prefix.
ERROR_TABLE: dict[type[octavo.OctavoError], ErrorRow] = {
    octavo.OctavoError: ErrorRow("INTERNAL"),
    octavo.RequestError: ErrorRow("INVALID_ARG"),
    octavo.InvalidRequest: ErrorRow("INVALID_ARG"),
    octavo.PromptTooLong: ErrorRow("INVALID_ARG"),
    octavo.Overloaded: ErrorRow("UNAVAILABLE", prefixed=False),
    octavo.DeadlineExceeded: ErrorRow("UNAVAILABLE", prefixed=False),
    octavo.RequestCancelled: ErrorRow("CANCELLED", prefixed=False),
    octavo.EngineError: ErrorRow("INTERNAL"),
    octavo.ModelLoadError: ErrorRow("UNAVAILABLE"),
    octavo.RequestFailed: ErrorRow("INTERNAL"),
    octavo.EngineDead: ErrorRow("UNAVAILABLE"),
    UnhealthyEngine: ErrorRow("UNAVAILABLE", prefixed=False),
}


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """One line for the client, and the name of the TritonError code it goes with."""

    code: str
    text: str


def error_reply(error: BaseException) -> ErrorReply:
    """The reply for any exception. Of one that is not ours nothing is shown: it may hold paths and values."""
    if not isinstance(error, octavo.OctavoError):
        return ErrorReply("INTERNAL", PREFIX + "internal error; the server's log has the details")
    row = next(ERROR_TABLE[c] for c in type(error).__mro__ if c in ERROR_TABLE)
    # A client's own words may be in it: what UTF-8 cannot hold could not be sent.
    text = " ".join(str(error).splitlines()).encode("utf-8", "backslashreplace").decode("utf-8")
    return ErrorReply(row.code, PREFIX + text if row.prefixed else text)
