"""History: what was said so far, as the messages of the chat route, out of protocols that cut it up in another way.

An assistant's turn is one message there: reasoning, text and calls of tools together. Knows none of the protocols.
"""

from __future__ import annotations

from typing import Any


class History:
    """Owns the messages."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def add(self, role: str, text: str) -> None:
        """A message. What a system message says right behind another one is part of that: templates know one."""
        last = self.messages[-1] if self.messages else None
        if role == "assistant":
            self._write("content", text)
        elif role == "system" and last is not None and last["role"] == "system":
            last["content"] += f"\n\n{text}"
        else:
            self.messages.append({"role": role, "content": text})

    def add_reasoning(self, text: str) -> None:
        """What the assistant thought."""
        self._write("reasoning_content", text)

    def add_call(self, call_id: str, name: str, arguments: dict[str, Any] | str) -> None:
        """The assistant called a tool; arguments as an object, or as the text that the model wrote."""
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._turn().setdefault("tool_calls", []).append(call)

    def add_result(self, call_id: str, text: str) -> None:
        """What a tool answered."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def _write(self, member: str, text: str) -> None:
        turn = self._turn()
        turn[member] = f"{turn[member]}\n{text}" if turn.get(member) else text

    def _turn(self) -> dict[str, Any]:
        """The assistant's turn, which lasts until another speaks: templates want roles that alternate."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.messages.append({"role": "assistant", "content": ""})
        return self.messages[-1]
