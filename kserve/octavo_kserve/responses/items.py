"""Output items of a response, and the events of which each is made: one item a block of the answer's message.

Knows nothing of the response around them.
"""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.openai.message_blocks import Block

_Event = dict[str, Any]
_PREFIXES = {
    octavo.PartKind.CONTENT: "msg_",
    octavo.PartKind.REASONING: "rs_",
    octavo.PartKind.TOOL_CALL: "fc_",
}
IN_PROGRESS, COMPLETED, INCOMPLETE = "in_progress", "completed", "incomplete"
_WORDS = {octavo.PartKind.CONTENT: "output_text", octavo.PartKind.REASONING: "reasoning_text"}


class Item:
    """One item. Owns the logprobs of its text."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._is_call = block.kind is octavo.PartKind.TOOL_CALL
        self._logprobs: list[dict[str, Any]] = []

    def whole(self, status: str) -> dict[str, Any]:
        """The item as it is now; one in progress is shown without what it holds."""
        block, begins = self._block, status == IN_PROGRESS
        item: dict[str, Any] = {"id": _PREFIXES[block.kind] + block.number, "status": status}
        if self._is_call:
            arguments = "" if begins else block.text
            return item | {
                "type": "function_call", "call_id": block.call_id, "name": block.name, "arguments": arguments
            }  # fmt: skip
        content = [] if begins else [self._part(block.text)]
        if block.kind is octavo.PartKind.REASONING:
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def opening(self) -> list[_Event]:
        """The events with which it begins."""
        added = self._item_event("response.output_item.added", IN_PROGRESS)
        return [added] if self._is_call else [added, self._event("response.content_part.added", part=self._part(""))]

    def delta(self, text: str, logprobs: list[dict[str, Any]]) -> _Event:
        """The event of what is written in it."""
        if self._is_call:
            return self._event("response.function_call_arguments.delta", delta=text)
        self._logprobs += logprobs
        return self._text_event("delta", delta=text, logprobs=logprobs)

    def closing(self, status: str) -> list[_Event]:
        """The events with which it ends."""
        text = self._block.text
        done = self._item_event("response.output_item.done", status)
        if self._is_call:
            name = {"name": self._block.name}
            return [self._event("response.function_call_arguments.done", arguments=text, **name), done]
        part = self._event("response.content_part.done", part=self._part(text))
        return [self._text_event("done", text=text, logprobs=self._logprobs), part, done]

    def _part(self, text: str) -> dict[str, Any]:
        if self._block.kind is octavo.PartKind.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs if text else []}

    def _text_event(self, step: str, **members: Any) -> _Event:
        if self._block.kind is octavo.PartKind.REASONING:
            del members["logprobs"]
        return self._event(f"response.{_WORDS[self._block.kind]}.{step}", **members)

    def _event(self, kind: str, **members: Any) -> _Event:
        place = {"item_id": _PREFIXES[self._block.kind] + self._block.number, "output_index": self._block.index}
        return {"type": kind, **place, **({} if self._is_call else {"content_index": 0}), **members}

    def _item_event(self, kind: str, status: str) -> _Event:
        return {"type": kind, "output_index": self._block.index, "item": self.whole(status)}
