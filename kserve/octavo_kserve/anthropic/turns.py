"""Reads `system` and `messages` of a request to /messages: content blocks to the messages of the chat route.

Each block is checked here, under the name that the client gave it. Knows no template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import octavo
from octavo_kserve.anthropic.arguments import written_arguments
from octavo_kserve.openai.history import History
from octavo_kserve.openai.text_parts import read_name, read_string, read_text

_PARTS = {"text": "text"}
_ROLES = ("user", "assistant", "system")


def read_turns(turns: object, system: object) -> list[dict[str, Any]]:
    """The messages. Raises InvalidRequest that names what is at fault, such as `messages[2].content[0].type`."""
    if not isinstance(turns, list) or not turns:
        raise octavo.InvalidRequest("messages", turns, "a list of messages that is not empty")
    history = History()
    if system:
        history.add("system", read_text("system", system, _PARTS))
    for i, turn in enumerate(turns):
        name = f"messages[{i}]"
        if not isinstance(turn, Mapping):
            raise octavo.InvalidRequest(name, turn, 'an object with "role" and "content"')
        role = turn.get("role")
        if role not in _ROLES:
            raise octavo.InvalidRequest(f"{name}.role", role, f"one of {', '.join(_ROLES)}")
        _add(history, str(role), f"{name}.content", turn.get("content"))
    if not history.messages:
        raise octavo.InvalidRequest("messages", turns, "messages of which one says something")
    return history.messages


def _add(history: History, role: str, name: str, content: object) -> None:
    """A turn. Texts that stand side by side are one message, in their order with what else there is."""
    if isinstance(content, str):
        history.add(role, content)
        return
    if not isinstance(content, list):
        raise octavo.InvalidRequest(name, content, "a text, or a list of content blocks")
    texts: list[str] = []
    for i, block in enumerate(content):
        label = f"{name}[{i}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text":
            texts.append(read_string(label, block, "text"))
            continue
        _add_texts(history, role, texts)
        if role == "assistant" and kind in ("thinking", "redacted_thinking", "tool_use"):
            _add_of_assistant(history, label, kind, block)
        elif role == "user" and kind == "tool_result":
            result = read_text(f"{label}.content", block.get("content") or "", _PARTS)
            failed = "Error: " if block.get("is_error") else ""
            history.add_result(read_string(label, block, "tool_use_id"), failed + result)
        else:
            raise octavo.InvalidRequest(f"{label}.type", kind, f"a block of text, tools or thinking by the {role}")
    _add_texts(history, role, texts)


def _add_texts(history: History, role: str, texts: list[str]) -> None:
    if texts:
        history.add(role, "\n".join(texts))
        texts.clear()


def _add_of_assistant(history: History, name: str, kind: str, block: Mapping[str, Any]) -> None:
    if kind == "thinking":
        history.add_reasoning(read_string(name, block, "thinking"))
    elif kind == "tool_use":
        given = block.get("input")
        if not isinstance(given, Mapping):
            raise octavo.InvalidRequest(f"{name}.input", given, "a JSON object")
        history.add_call(read_string(name, block, "id"), read_name(name, block), written_arguments(given))
