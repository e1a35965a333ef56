"""CallReader: one call of a tool, a JSON object with a name and arguments, read while it is being written.

The call is certain once its name is whole and its arguments have begun: from then on they are given out as they come.
Knows nothing of what stands around the object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from octavo.text.marks import WHITE_SPACE

_TEXTS = ("name", "type", "id")
_ARGUMENTS = ("arguments", "parameters")
_IN_STRING = re.compile(r'["\\]')
_IN_VALUE = re.compile(r'["{}\[\]]')


class Malformed(Exception):
    """What is written is no call. `position` is the first character that cannot be part of one."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class CallReader:
    """Reads from the opening brace on. Owns the call so far; `name` is None until it is whole.

    `fresh` holds the arguments' text that nobody has taken yet. `certain_at` is where in the text last pushed the last
    part of the name or the arguments ended, None if there was none in it.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.fresh: list[str] = []
        self.has_arguments = False
        self.certain_at: int | None = None
        self.done = False
        self._seen: set[str] = set()
        self._key = ""
        self._string: list[str] = []
        self._escaped = False
        self._depth = 0
        self._in_string = False
        self._state: Callable[[str, int], int] = self._brace

    @property
    def certain(self) -> bool:
        """Whether it is a call, whatever follows."""
        return self.name is not None and self.has_arguments

    def push(self, text: str, position: int) -> int:
        """Reads on from `position`; returns where the object ended, or the end of `text`. Raises Malformed."""
        self.certain_at = None
        while position < len(text) and not self.done:
            position = self._state(text, position)
        return position

    def _brace(self, text: str, position: int) -> int:
        return self._skip_to({"{": self._before_key}, text, position)

    def _before_key(self, text: str, position: int) -> int:
        self._string = []
        return self._skip_to({'"': self._read_key}, text, position)

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
        end = self._skip_to({"{": self._read_arguments}, text, position)
        if self._state == self._read_arguments:
            self.has_arguments, self._depth = True, 1
            self._give("{", end)
        return end

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
        self._state = self._after_value

    def _read_arguments(self, text: str, position: int) -> int:
        """Up to the brace that closes them. Whether they are valid JSON is for whoever calls the tool to find out."""
        start = position
        while position < len(text):
            if self._in_string:
                position = self._end_of_string(text, position)
                continue
            match = _IN_VALUE.search(text, position)
            position = len(text) if match is None else match.end()
            if match is not None and self._passes(match[0]):
                self._state = self._after_value
                break
        self._give(text[start:position], position)
        return position

    def _passes(self, character: str) -> bool:
        """Whether this brace, bracket or quotation mark ends the arguments."""
        if character == '"':
            self._in_string = True
        else:
            self._depth += 1 if character in "{[" else -1
        return self._depth == 0

    def _end_of_string(self, text: str, position: int) -> int:
        """Behind the closing quotation mark, or the end of `text`: then `_in_string` stays."""
        self._in_string = True
        while position < len(text):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            match = _IN_STRING.search(text, position)
            if match is None:
                return len(text)
            position = match.end()
            if match[0] == '"':
                self._in_string = False
                return position
            self._escaped = True
        return position

    def _give(self, piece: str, position: int) -> None:
        self.fresh.append(piece)
        self.certain_at = position

    def _after_value(self, text: str, position: int) -> int:
        if text[position] == "}" and self.certain:
            self.done = True
            return position + 1
        return self._skip_to({",": self._before_key}, text, position)

    def _skip_to(self, states: dict[str, Callable[[str, int], int]], text: str, position: int) -> int:
        """Over white space to the one of these characters that leads to the next state."""
        character = text[position]
        if character in states:
            self._state = states[character]
        elif character not in WHITE_SPACE:
            raise Malformed(position)
        return position + 1
