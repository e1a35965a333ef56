"""A call's arguments as an object, which this protocol has them as: what a model wrote need not be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import octavo
from octavo_kserve.openai.depth import is_writable

# The member that holds arguments which are not JSON.
INVALID_JSON = "INVALID_JSON"


def arguments_object(text: str) -> dict[str, Any]:
    """The object that the text stands for, or one that holds it: a call may be cut off, or not have been forced."""
    try:
        value = octavo.parse_json("arguments", text)
    except octavo.InvalidRequest:
        value = None
    return value if isinstance(value, dict) and is_writable(value) else {INVALID_JSON: text}


def written_arguments(given: Mapping[str, Any]) -> dict[str, Any] | str:
    """The object that comes back, or the text that one was made of which only holds it: no text of an object is."""
    text = given.get(INVALID_JSON)
    return text if isinstance(text, str) and arguments_object(text) == given else dict(given)
