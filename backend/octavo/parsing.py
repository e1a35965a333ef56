"""Reading one value that somebody else wrote: JSON, a model.json, a request parameter.

Numbers may arrive as strings ("0.95"), booleans as "true" / "false". Every function takes the parameter's
name first, so that a refusal can say which one it was. Knows no parameter by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from octavo.errors import InvalidRequest

T = TypeVar("T")

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def parse_json(name: str, text: str) -> Any:
    """The value that a JSON text stands for."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(name, text, f"JSON ({reason})") from None


def parse_bool(name: str, value: object) -> bool:
    """True or False, or the strings "true" and "false" in any case."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise InvalidRequest(name, value, "true or false")


def parse_int(name: str, value: object, low: int = INT64_MIN, high: int = INT64_MAX) -> int:
    """A whole number in [low, high]; 3.0 and "3" are whole, True is not a number."""
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    elif isinstance(value, str):
        number = _int_from_text(value)
    if number is None or not low <= number <= high:
        raise InvalidRequest(name, value, _range("a whole number", low, high))
    return number


def parse_float(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    number: float | None = None
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = None
    if number is None or not math.isfinite(number) or not low <= number <= high:
        raise InvalidRequest(name, value, _range("a number", low, high))
    return number


def parse_text(name: str, value: object, allow_empty: bool = False) -> str:
    """A string that UTF-8 can hold; empty only where that means something."""
    if not isinstance(value, str) or (not value and not allow_empty):
        raise InvalidRequest(name, value, "a string" if allow_empty else "a string that is not empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(name, value, "text that UTF-8 can hold (no lone surrogates)") from None
    return value


def parse_list(name: str, value: object, item: Callable[[str, object], T], limit: int) -> tuple[T, ...]:
    """A list of at most `limit` items, each read by `item`."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InvalidRequest(name, value, "a list")
    if len(value) > limit:
        raise InvalidRequest(name, f"{len(value)} items", f"at most {limit}")
    return tuple(item(f"{name}[{i}]", element) for i, element in enumerate(value))


def parse_texts(name: str, value: object, limit: int) -> tuple[str, ...]:
    """One string, or a list of strings."""
    return parse_list(name, [value] if isinstance(value, str) else value, parse_text, limit)


def parse_mapping(name: str, value: object) -> Mapping[str, object]:
    """A JSON object."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(name, value, "a JSON object")
    return value


def _int_from_text(text: str) -> int | None:
    try:
        return int(text) if len(text) <= 32 else None
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _range(kind: str, low: float, high: float) -> str:
    if low in (-math.inf, INT64_MIN) and high in (math.inf, INT64_MAX):
        return kind if high == math.inf else f"{kind} of 64 bits"
    if high in (math.inf, INT64_MAX):
        return f"{kind} of at least {low}"
    return f"{kind} from {low} to {high}"
