"""Texts of what a client sends back: each is checked under the name that the client gave it.

For protocols that cut a history up in their own way. Knows none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import octavo


def read_text(name: str, content: object, members: Mapping[str, str]) -> str:
    """A text, or a list of parts, which are its lines. `members`: the member that has a part's text, by its `type`."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise octavo.InvalidRequest(name, content, "a text, or a list of parts that are texts")
    return "\n".join(_read_part(f"{name}[{i}]", part, members) for i, part in enumerate(content))


def read_string(name: str, item: Mapping[str, Any], member: str) -> str:
    """A string; it may be empty."""
    value = item.get(member)
    if not isinstance(value, str):
        raise octavo.InvalidRequest(f"{name}.{member}", value, "a string")
    return value


def read_name(name: str, item: Mapping[str, Any]) -> str:
    """The member `name`, which is a string that is not empty."""
    value = item.get("name")
    if not isinstance(value, str) or not value:
        raise octavo.InvalidRequest(f"{name}.name", value, "a string that is not empty")
    return value


def _read_part(name: str, part: object, members: Mapping[str, str]) -> str:
    usual = next(iter(members))
    if not isinstance(part, Mapping):
        raise octavo.InvalidRequest(name, part, f'an object like {{"type": "{usual}", "text": "..."}}')
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in members:
        raise octavo.InvalidRequest(f"{name}.type", kind, f'"{usual}": this model reads text only')
    return read_string(name, part, members[kind])
