"""MessageWriter: the text of one answer to the message of the OpenAI API, in deltas or whole.

Knows no response around the message, and no format of a model.
"""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.openai.request import MessageSettings
from octavo_kserve.openai.shown_parts import ShownParts


class MessageWriter:
    """One choice's message. Owns its parts."""

    def __init__(self, settings: MessageSettings, prompt: str) -> None:
        """`prompt` is the text before the message."""
        self._parts = ShownParts(settings, prompt)

    @property
    def has_called(self) -> bool:
        """Whether it calls a tool so far."""
        return self._parts.has_called

    def deltas(self, text: str, finished: bool) -> list[dict[str, Any]]:
        """What is new, in the order in which it was written."""
        return [delta for part in self._parts.push(text, finished) for delta in self._write(part)]

    def whole(self, text: str, echo: str) -> dict[str, Any]:
        """The message of the whole text: what all its deltas are together, behind `echo`."""
        content, reasoning, calls = echo, "", list[dict[str, Any]]()
        for delta in self.deltas(text, finished=True):
            content += delta.get("content", "")
            reasoning += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    calls.append({name: value for name, value in call.items() if name != "index"})
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        message = {"role": "assistant", "content": content, "refusal": None}
        if not content and (reasoning or calls):
            message["content"] = None
        return (
            message | ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})
        )

    def _write(self, part: octavo.MessagePart) -> list[dict[str, Any]]:
        """A call begins with a delta of its name alone; its arguments follow."""
        if part.kind is octavo.PartKind.CONTENT:
            return [{"content": part.text}]
        if part.kind is octavo.PartKind.REASONING:
            return [{"reasoning_content": part.text}]
        written: list[dict[str, Any]] = []
        if part.name is not None:
            function = {"name": part.name, "arguments": ""}
            written.append(
                {"index": part.call, "id": self._parts.new_call_id(), "type": "function", "function": function}
            )
        if part.text:
            written.append({"index": part.call, "function": {"arguments": part.text}})
        return [{"tool_calls": [call]} for call in written]
