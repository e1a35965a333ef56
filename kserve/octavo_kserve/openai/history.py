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
            turn = self._turn("content")
            turn["content"] = f"{turn['content']}\n{text}" if turn["content"] else text
        elif role == "system" and last is not None and last["role"] == "system":
            last["content"] += f"\n\n{text}"
        else:
            self.messages.append({"role": role, "content": text})

    def add_reasoning(self, text: str) -> None:
        """What the assistant thought before it spoke or called."""
        turn = self._turn("reasoning_content")
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text

    def add_call(self, call_id: str, name: str, arguments: dict[str, Any]) -> None:
        """The assistant called a tool."""
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._turn("tool_calls").setdefault("tool_calls", []).append(call)

    def add_result(self, call_id: str, text: str) -> None:
        """What a tool answered."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def _turn(self, member: str) -> dict[str, Any]:
        """The assistant's turn that this goes to: text behind calls, and reasoning behind either, begin another one."""
        last = self.messages[-1] if self.messages else None
        goes_on = last is not None and last["role"] == "assistant"
        if last is None or not goes_on or _is_behind(last, member):
            last = {"role": "assistant", "content": ""}
            self.messages.append(last)
        return last


def _is_behind(turn: dict[str, Any], member: str) -> bool:
    if member == "tool_calls":
        return False
    return "tool_calls" in turn or (member == "reasoning_content" and bool(turn["content"]))
