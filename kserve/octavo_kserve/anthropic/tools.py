"""Reads `tools` and `tool_choice` of a request to /messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import octavo
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.text_parts import read_name
from octavo_kserve.openai.tool_choice import ToolChoice, read_tool_choice

_CHOICES = '{"type": "auto"}, {"type": "any"}, {"type": "none"} or {"type": "tool", "name": "..."}'


def read_tools(fields: Fields) -> ToolChoice:
    """Reads the fields. Raises InvalidRequest that names the one at fault."""
    tools, choice = fields.get("tools"), fields.within("tool_choice")
    if tools is not None and not isinstance(tools, list):
        raise octavo.InvalidRequest("tools", tools, "a list of tools")
    chat = {
        "tools": [_function(f"tools[{i}]", tool) for i, tool in enumerate(tools or ())],
        "tool_choice": _choice(choice, fields.get("tool_choice")),
        "parallel_tool_calls": not choice.flag("disable_parallel_tool_use"),
    }
    choice.log_unknown()
    return read_tool_choice(Fields(chat))


def _choice(choice: Fields, value: object) -> Any:
    """As the chat route has it."""
    words = {"auto": "auto", "any": "required", "none": "none"}
    kind, name = choice.get("type"), choice.get("name")
    if value is None:
        return None
    if kind == "tool" and isinstance(name, str) and name:
        return {"type": "function", "function": {"name": name}}
    if not isinstance(kind, str) or kind not in words:
        raise octavo.InvalidRequest("tool_choice", value, _CHOICES)
    return words[kind]


def _function(name: str, tool: object) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise octavo.InvalidRequest(name, tool, 'an object like {"name": "...", "input_schema": {...}}')
    if tool.get("type") not in (None, "custom"):
        raise octavo.InvalidRequest(f"{name}.type", tool["type"], '"custom": this server has no tools of its own')
    function = {"name": read_name(name, tool), "parameters": tool.get("input_schema")}
    if not isinstance(tool.get("input_schema"), Mapping):
        allowed = "a JSON schema, which is an object"
        raise octavo.InvalidRequest(f"{name}.input_schema", tool.get("input_schema"), allowed)
    given = {member: tool[member] for member in ("description", "strict") if tool.get(member) is not None}
    return {"type": "function", "function": function | given}
