"""A call's arguments as an object: what a model wrote need not be one. Knows no protocol."""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.openai.depth import is_writable

# The member that holds arguments which are not JSON, where an object must stand for them.
INVALID_JSON = "INVALID_JSON"


def arguments_object(text: str) -> dict[str, Any]:
    """The object that the text stands for, or one that holds it: a call may be cut off, or not have been forced."""
    try:
        value = octavo.parse_json("arguments", text or "{}")
    except octavo.InvalidRequest:
        value = None
    return value if isinstance(value, dict) and is_writable(value) else {INVALID_JSON: text}
