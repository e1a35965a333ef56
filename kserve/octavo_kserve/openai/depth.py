"""How deeply a JSON value is nested: what is written anew inside an answer must not be deeper than JSON can be written.

Knows no field.
"""

from __future__ import annotations

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
