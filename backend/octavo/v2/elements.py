"""Input tensors of one element, read by name: texts, flags, JSON. Knows no input by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.errors import InvalidRequest
from octavo.parsing import parse_json
from octavo.v2.tensors import Array


def read_element(tensors: Mapping[str, Array], name: str) -> Any:
    """The element as numpy has it, None for no such tensor. Raises InvalidRequest for more or fewer than one."""
    array = tensors.get(name)
    if array is None:
        return None
    if array.size != 1:
        raise InvalidRequest(name, f"a tensor of {array.size} elements", "exactly one")
    return array.reshape(-1).tolist()[0]


def read_text(tensors: Mapping[str, Array], name: str) -> str | None:
    """A text. Raises InvalidRequest for another type, or bytes that are not UTF-8."""
    value = read_element(tensors, name)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InvalidRequest(name, value, "a string (datatype BYTES)")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, value, f"UTF-8 text (byte {error.start} is not)") from None


def read_flag(tensors: Mapping[str, Array], name: str) -> bool | None:
    """True or false. Raises InvalidRequest for another type."""
    value = read_element(tensors, name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(name, value, "true or false (datatype BOOL)")
    return value


def read_string(name: str, value: object) -> str | None:
    """A parameter that is a string. Raises InvalidRequest for another type."""
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(name, value, "a string")
    return value


def read_json(tensors: Mapping[str, Array], name: str) -> Any:
    """What the text says as JSON. Raises InvalidRequest where it is none."""
    text = read_text(tensors, name)
    return None if text is None else parse_json(name, text)


def parse_object(name: str, text: str) -> dict[str, Any]:
    """A JSON object. Raises InvalidRequest where the text is none."""
    value = parse_json(name, text)
    if not isinstance(value, dict):
        raise InvalidRequest(name, value, "a JSON object")
    return value
