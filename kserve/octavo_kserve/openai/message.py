"""MessageWriter: the text of one answer to the message of the OpenAI API, in deltas or whole.

Knows no response around the message, and no format of a model.
"""

from __future__ import annotations

import uuid
from typing import Any

import octavo
from octavo_kserve.openai.request import MessageSettings


class MessageWriter:
    """One choice's message. Owns the reader of its text; `has_called` tells whether it calls a tool so far."""

    def __init__(self, settings: MessageSettings, prompt: str) -> None:
        """`prompt` is the text before the message."""
        self._settings = settings
        self._reader = settings.format.reader(prompt)
        self.has_called = False

    def deltas(self, text: str, finished: bool) -> list[dict[str, Any]]:
        """What is new, in the order in which it was written."""
        return [delta for part in self._reader.push(text, finished) for delta in self._write(part)]

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
            return [{"reasoning_content": part.text}] if self._settings.shows_reasoning else []
        if part.call and not self._settings.parallel_tool_calls:
            return []
        self.has_called = True
        written: list[dict[str, Any]] = []
        if part.name is not None:
            function = {"name": part.name, "arguments": ""}
            written.append({"index": part.call, "id": self._new_id(), "type": "function", "function": function})
        if part.text:
            written.append({"index": part.call, "function": {"arguments": part.text}})
        return [{"tool_calls": [call]} for call in written]

    def _new_id(self) -> str:
        tools = self._settings.format.tools
        assert tools is not None
        number = uuid.uuid4().hex
        return f"call_{number[:24]}" if tools.id_length is None else number[: tools.id_length]
