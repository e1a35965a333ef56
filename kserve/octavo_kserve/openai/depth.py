"""Whether a JSON value can be written anew inside an answer: not all can that Python has read. Knows no field."""

from __future__ import annotations

import json

# Python writes, as it reads, about a thousand less what calls are open already.
MOST_LEVELS = 200


def is_too_deep(value: object) -> bool:
    """Whether there are more than MOST_LEVELS lists or objects inside each other."""
    level: list[object] = [value]
    for _ in range(MOST_LEVELS + 1):
        inner = [each for each in level if isinstance(each, dict | list)]
        if not inner:
            return False
        level = [child for each in inner for child in (each.values() if isinstance(each, dict) else each)]
    return True


def is_writable(value: object) -> bool:
    """Whether it is JSON of at most MOST_LEVELS: Python reads NaN, and 1e999 as infinity, which JSON has not."""
    if is_too_deep(value):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
