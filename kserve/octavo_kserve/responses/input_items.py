"""Reads `input` and `instructions` of a request to /responses: items to the messages of the chat route.

Each item is checked here, under the name that the client gave it. Knows no template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import octavo
from octavo_kserve.openai.history import History
from octavo_kserve.openai.text_parts import read_name, read_string, read_text

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = dict.fromkeys(("input_text", "output_text", "text", "reasoning_text", "summary_text"), "text")
_PARTS = _TEXTS | {"refusal": "refusal"}


def read_input(value: object, instructions: str | None) -> list[dict[str, Any]]:
    """The messages. Raises InvalidRequest that names what is at fault, such as `input[2].content[0].type`."""
    history = History()
    if instructions:
        history.add("system", instructions)
    if isinstance(value, str):
        history.add("user", value)
        return history.messages
    if not isinstance(value, list) or not value:
        raise octavo.InvalidRequest("input", value, "a text, or a list of items that is not empty")
    for i, item in enumerate(value):
        _add(history, f"input[{i}]", item)
    return history.messages


def _add(history: History, name: str, item: object) -> None:
    if not isinstance(item, Mapping):
        raise octavo.InvalidRequest(name, item, "an object")
    kind = item.get("type") or ("message" if "role" in item else None)
    match kind:
        case "message":
            role = item.get("role")
            if not isinstance(role, str) or role not in _ROLES:
                raise octavo.InvalidRequest(f"{name}.role", role, f"one of {', '.join(_ROLES)}")
            history.add(_ROLES[role], read_text(f"{name}.content", item.get("content"), _PARTS))
        case "function_call":
            arguments = read_string(name, item, "arguments")
            history.add_call(read_string(name, item, "call_id"), read_name(name, item), arguments)
        case "function_call_output":
            output = read_text(f"{name}.output", item.get("output"), _PARTS)
            history.add_result(read_string(name, item, "call_id"), output)
        case "reasoning":
            _add_reasoning(history, name, item)
        case "item_reference":
            raise octavo.InvalidRequest(f"{name}.type", kind, "the item itself: nothing is stored here")
        case _:
            known = "message, function_call, function_call_output, reasoning"
            raise octavo.InvalidRequest(f"{name}.type", kind, f"one of {known}")


def _add_reasoning(history: History, name: str, item: Mapping[str, Any]) -> None:
    """Its content, or else its summary; what is encrypted nobody here can read."""
    member = "content" if item.get("content") else "summary"
    text = read_text(f"{name}.{member}", item.get(member) or "", _PARTS)
    if text:
        history.add_reasoning(text)
