"""JsonCallReader: a call that is a JSON object with a name and arguments, in either order.

Members that nobody knows are left out where it is certain to be a call. Knows nothing of what stands around the object.
"""

from __future__ import annotations

import json
import re

from octavo.text.call_reader import CallReader, Malformed

_TEXTS = ("name", "type", "id")
_ARGUMENTS = ("arguments", "parameters")
_IN_MEMBER = re.compile(r'["{}\[\],]')


class JsonCallReader(CallReader):
    """Reads from the opening brace on."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()
        self._key = ""
        self._string: list[str] = []

    def _begin(self, text: str, position: int) -> int:
        return self._skip_to({"{": self._before_key}, text, position)

    def _before_key(self, text: str, position: int) -> int:
        self._string = []
        return self._skip_to({'"': self._skip_key if self.certain else self._read_key}, text, position)

    def _read_key(self, text: str, position: int) -> int:
        """One character; a key that cannot become a known one is none."""
        character = text[position]
        written = "".join(self._string)
        if character == '"':
            if written not in _TEXTS + _ARGUMENTS or self._slot(written) in self._seen:
                raise Malformed(position)
            self._seen.add(self._slot(written))
            self._key, self._state = written, self._before_value
        else:
            self._string.append(character)
            if not any(key.startswith(written + character) for key in _TEXTS + _ARGUMENTS):
                raise Malformed(position)
        return position + 1

    def _slot(self, key: str) -> str:
        """The two names of the arguments are one member."""
        return _ARGUMENTS[0] if key in _ARGUMENTS else key

    def _before_value(self, text: str, position: int) -> int:
        return self._skip_to({":": self._begin_value}, text, position)

    def _begin_value(self, text: str, position: int) -> int:
        self._string = []
        if self._key in _TEXTS:
            return self._skip_to({'"': self._read_text}, text, position)
        if text[position] == '"':
            self._state = self._read_text
            return position + 1
        return self._open_arguments(text, position)

    def _read_text(self, text: str, position: int) -> int:
        """Up to the end of a string, or of what there is."""
        end = self._end_of_string(text, position)
        self._string.append(text[position : end if self._in_string else end - 1])
        if not self._in_string:
            self._end_text(end)
        return end

    def _end_text(self, position: int) -> None:
        try:
            value = json.loads(f'"{"".join(self._string)}"')
        except ValueError:
            raise Malformed(position - 1) from None
        if self._key == "name":
            if not value:
                raise Malformed(position - 1)
            self.name = value
            self.certain_at = position
        elif self._key in _ARGUMENTS:
            if not _is_object(value):
                raise Malformed(position - 1)
            self.has_arguments = True
            self._give(value, position)
        self._state = self._after_arguments

    def _after_arguments(self, text: str, position: int) -> int:
        """Behind any value."""
        if text[position] == "}" and self.certain:
            self.done = True
            return position + 1
        return self._skip_to({",": self._before_key}, text, position)

    def _skip_key(self, text: str, position: int) -> int:
        end = self._end_of_string(text, position)
        if not self._in_string:
            self._state = self._before_skipped
        return end

    def _before_skipped(self, text: str, position: int) -> int:
        return self._skip_to({":": self._skip_value}, text, position)

    def _skip_value(self, text: str, position: int) -> int:
        """Up to what ends the member; whatever that is made of."""
        while position < len(text):
            if self._in_string:
                position = self._end_of_string(text, position)
                continue
            match = _IN_MEMBER.search(text, position)
            if match is None:
                return len(text)
            if not self._depth and match[0] in ",}]":
                self._state = self._after_arguments
                return match.start()
            position = match.end()
            if match[0] != ",":
                self._passes(match[0])
        return position


def _is_object(written: str) -> bool:
    try:
        return isinstance(json.loads(written), dict)
    except (ValueError, RecursionError):
        return False
