"""Reads `tools`, `tool_choice` and `parallel_tool_calls` of a request to /responses: tools without an inner object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import octavo
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.text_parts import read_name
from octavo_kserve.openai.tool_choice import ToolChoice, read_tool_choice

_MEMBERS = ("name", "description", "parameters", "strict")
_CHOICES = '"none", "auto", "required" or {"type": "function", "name": "..."}'


def read_tools(fields: Fields) -> ToolChoice:
    """Reads the fields. Raises InvalidRequest that names the one at fault."""
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    if tools is not None and not isinstance(tools, list):
        raise octavo.InvalidRequest("tools", tools, "a list of tools")
    if choice == "auto" and not tools:
        # What an answer to a request without either repeats.
        choice = None
    chat = {
        "tools": [_function(f"tools[{i}]", tool) for i, tool in enumerate(tools or ())],
        "tool_choice": choice if choice in (None, "none", "auto", "required") else _named(choice),
        "parallel_tool_calls": fields.get("parallel_tool_calls"),
    }
    return read_tool_choice(Fields(chat))


def _function(name: str, tool: object) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise octavo.InvalidRequest(name, tool, 'an object like {"type": "function", "name": "..."}')
    if tool.get("type") != "function":
        raise octavo.InvalidRequest(f"{name}.type", tool.get("type"), '"function": this server has no tools of its own')
    read_name(name, tool)
    if not isinstance(tool.get("parameters"), Mapping | None):
        raise octavo.InvalidRequest(f"{name}.parameters", tool["parameters"], "a JSON schema, which is an object")
    function = {member: tool[member] for member in _MEMBERS if tool.get(member) is not None}
    return {"type": "function", "function": function}


def _named(choice: object) -> dict[str, Any]:
    name = choice.get("name") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    if not isinstance(name, str) or not name:
        raise octavo.InvalidRequest("tool_choice", choice, _CHOICES)
    return {"type": "function", "function": {"name": name}}
