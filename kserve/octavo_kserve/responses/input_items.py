"""Reads `input` and `instructions` of a request to /responses: items to the messages of the chat route.

Each item is checked here, under the name that the client gave it. Knows no template.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import octavo
from octavo_kserve.openai.arguments import arguments_object
from octavo_kserve.openai.history import History

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


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
            history.add(_ROLES[role], _text(f"{name}.content", item.get("content")))
        case "function_call":
            # They come back as this server gave them out, which need not be JSON.
            arguments = arguments_object(_string(name, item, "arguments"))
            history.add_call(_string(name, item, "call_id"), _string(name, item, "name"), arguments)
        case "function_call_output":
            history.add_result(_string(name, item, "call_id"), _text(f"{name}.output", item.get("output")))
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
    text = _text(f"{name}.{member}", item.get(member) or "")
    if text:
        history.add_reasoning(text)


def _text(name: str, content: object) -> str:
    """A text, or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise octavo.InvalidRequest(name, content, "a text, or a list of text parts")
    return "\n".join(_part(f"{name}[{i}]", part) for i, part in enumerate(content))


def _part(name: str, part: object) -> str:
    if not isinstance(part, Mapping):
        raise octavo.InvalidRequest(name, part, 'an object like {"type": "input_text", "text": "..."}')
    if part.get("type") == "refusal":
        return _string(name, part, "refusal")
    if part.get("type") not in _TEXT_PARTS:
        raise octavo.InvalidRequest(f"{name}.type", part.get("type"), '"input_text": this model reads text only')
    return _string(name, part, "text")


def _string(name: str, item: Mapping[str, Any], member: str) -> str:
    value = item.get(member)
    if not isinstance(value, str):
        raise octavo.InvalidRequest(f"{name}.{member}", value, "a string")
    return value
