"""The fields of one request's JSON body, read by name; remembers which have been asked for.

Knows no field by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import octavo

logger = logging.getLogger(__name__)


class Fields:
    """A JSON object whose absent and null members are the same. Owns the list of those that nobody asked for."""

    def __init__(self, values: Mapping[str, Any], within: str = "") -> None:
        """`within` is the name of the field that holds this object; empty for the body itself."""
        self._values = values
        self._within = f"{within}." if within else ""
        self._unknown = set(values)

    @classmethod
    def of_body(cls, body: bytes) -> Fields:
        """Reads a body. Raises InvalidRequest unless it is a JSON object, whatever its content type says."""
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise octavo.InvalidRequest("body", body, f"UTF-8 text (byte {error.start} is not)") from None
        values = octavo.parse_json("body", text)
        if not isinstance(values, dict):
            raise octavo.InvalidRequest("body", values, "a JSON object")
        return cls(values)

    def get(self, name: str) -> Any:
        """The value as it came, None for none."""
        self._unknown.discard(name)
        return self._values.get(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name)
        return default if value is None else octavo.parse_bool(self._within + name, value)

    def whole_number(self, name: str, low: int, high: int) -> int | None:
        """An integer from `low` to `high`, None for none."""
        value = self.get(name)
        return None if value is None else octavo.parse_int(self._within + name, value, low, high)

    def text(self, name: str) -> str | None:
        """A string, None for none."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise octavo.InvalidRequest(self._within + name, value, "a string")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object as it came, an empty one for none."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise octavo.InvalidRequest(self._within + name, value, "a JSON object")
        return value or {}

    def within(self, name: str) -> Fields:
        """The fields of a JSON object, which has none if it is absent."""
        return Fields(self.mapping(name), self._within + name)

    def refuse(self, name: str, reason: str) -> None:
        """Raises InvalidRequest if the field asks for something: null, false and what is empty do not."""
        value = self.get(name)
        if value:
            raise octavo.InvalidRequest(self._within + name, value, f"nothing here: {reason}")

    def log_unknown(self) -> None:
        """Clients send more than we know: no error, but worth a line to whoever wonders about it."""
        if self._unknown and logger.isEnabledFor(logging.DEBUG):
            logger.debug("unknown fields are ignored: %.300s", sorted(self._within + name for name in self._unknown))
