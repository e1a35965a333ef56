"""MessageBlocks: one answer's message as blocks, one behind the other: reasoning, text, calls of tools.

For protocols that open a block, write into it and close it. Knows none of them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import Enum, auto

import octavo
from octavo_kserve.openai.request import MessageSettings
from octavo_kserve.openai.shown_parts import ShownParts


class Step(Enum):
    """What happens to a block."""

    OPENED = auto()
    WRITTEN = auto()
    CLOSED = auto()


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a message, of one kind. `name` and `call_id` are a call's, whose text is its arguments."""

    index: int
    kind: octavo.PartKind
    name: str = ""
    call_id: str = ""
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Unique among all blocks there ever were."""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What was written into it so far."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Change:
    """One step of one block; `text` is what was written in it."""

    step: Step
    block: Block
    text: str = ""


class MessageBlocks:
    """One message. Owns its blocks, of which the last may be open."""

    def __init__(self, settings: MessageSettings, prompt: str) -> None:
        """`prompt` is the text before the message."""
        self._parts = ShownParts(settings, prompt)
        self._open: Block | None = None
        self.blocks: list[Block] = []

    @property
    def has_called(self) -> bool:
        """Whether it calls a tool so far."""
        return self._parts.has_called

    def push(self, text: str, finished: bool) -> list[Change]:
        """What `text` changes; with `finished` no block is open any more."""
        changes: list[Change] = []
        for part in self._parts.push(text, finished):
            block = self._open
            if block is None or block.kind is not part.kind or part.name is not None:
                changes += self._close()
                block = self._begin(part)
                changes.append(Change(Step.OPENED, block))
            if part.text:
                block.pieces.append(part.text)
                changes.append(Change(Step.WRITTEN, block, part.text))
        return changes + (self._close() if finished else [])

    def _begin(self, part: octavo.MessagePart) -> Block:
        calls = part.kind is octavo.PartKind.TOOL_CALL
        call_id = self._parts.new_call_id() if calls else ""
        self._open = Block(len(self.blocks), part.kind, part.name or "", call_id)
        self.blocks.append(self._open)
        return self._open

    def _close(self) -> list[Change]:
        closed, self._open = self._open, None
        return [] if closed is None else [Change(Step.CLOSED, closed)]
