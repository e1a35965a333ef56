"""MessagePart: what a model's message is made of, in the order in which it was written. Knows no format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class PartKind(StrEnum):
    """What a piece of text belongs to."""

    CONTENT = "content"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"


@dataclass(frozen=True, slots=True)
class MessagePart:
    """A piece of a message. Of a call of a tool: `text` is a piece of its arguments, and `call` says of which call.

    `name` is the called function's and comes once, with the first part of a call, whose text is empty.
    """

    kind: PartKind
    text: str
    call: int = 0
    name: str | None = None


def merged(parts: Iterable[MessagePart]) -> list[MessagePart]:
    """The same with as few parts as there can be, none of them without anything."""
    found: list[MessagePart] = []
    for part in parts:
        last = found[-1] if found else None
        if part.name is not None or (part.text and (last is None or (last.kind, last.call) != (part.kind, part.call))):
            found.append(part)
        elif last is not None and part.text:
            found[-1] = replace(last, text=last.text + part.text)
    return found
