"""Reads which tools a chat may call, and whether it must: `tools`, `tool_choice` and `parallel_tool_calls`.

Knows no format: what a forced call looks like in a model's text is for its chat format to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import octavo
from octavo_kserve.errors import Unprocessable
from octavo_kserve.openai.depth import MOST_LEVELS, is_too_deep
from octavo_kserve.openai.fields import Fields

_ALLOWED = '"none", "auto", "required" or {"type": "function", "function": {"name": "..."}}'


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`tools` are those that the template is shown, none where none may be called; as they came, to be checked there.

    `forced`: the answer is a call, of the tool `name` unless that is None. Without `parallel` there is one at most.
    """

    tools: Any
    forced: bool
    name: str | None
    parallel: bool


def read_tool_choice(fields: Fields) -> ToolChoice:
    """Reads the fields. Raises InvalidRequest that names the one at fault."""
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    parallel = fields.flag("parallel_tool_calls", True)
    if is_too_deep(tools):
        raise octavo.InvalidRequest("tools", "a value", f"at most {MOST_LEVELS} levels of nesting")
    if choice not in (None, "none") and not tools:
        raise Unprocessable("tool_choice", choice, "nothing here unless there are `tools`")
    if choice in (None, "none", "auto"):
        return ToolChoice(None if choice == "none" else tools, False, None, parallel)
    return ToolChoice(tools, True, None if choice == "required" else _name(choice), parallel)


def _name(choice: object) -> str:
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise octavo.InvalidRequest("tool_choice", choice, _ALLOWED)
    return name
