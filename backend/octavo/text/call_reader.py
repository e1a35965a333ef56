"""CallReader: one call of a tool, read while it is being written: what is the same however its format writes it.

The call is certain once its name is whole and its arguments have begun: from then on they are given out as they come.
Knows nothing of what stands around the call.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable

from octavo.text.marks import WHITE_SPACE

State = Callable[[str, int], int]

_IN_STRING = re.compile(r'["\\]')
_IN_VALUE = re.compile(r'["{}\[\]]')


class Malformed(Exception):
    """What is written is no call. `position` is the first character that cannot be part of one."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class CallReader(ABC):
    """Reads from the first character of a call on. Owns the call so far; `name` is None until it is whole.

    `fresh` holds the arguments' text that nobody has taken yet; `has_all_arguments` once they have ended. `certain_at`
    is where in the text last pushed the last part of the name or the arguments ended, None if there was none in it.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.fresh: list[str] = []
        self.has_arguments = False
        self.has_all_arguments = False
        self.certain_at: int | None = None
        self.done = False
        self._escaped = False
        self._depth = 0
        self._in_string = False
        self._state: State = self._begin

    @property
    def certain(self) -> bool:
        """Whether it is a call, whatever follows."""
        return self.name is not None and self.has_arguments

    @property
    def is_cut(self) -> bool:
        """Whether it is a call if nothing follows, although its arguments have not begun."""
        return self.name is not None and not self.certain

    @property
    def has_begun(self) -> bool:
        """Whether anything of it has come."""
        return self._state != self._begin

    def push(self, text: str, position: int) -> int:
        """Reads on from `position`; returns where the call ended, or the end of `text`. Raises Malformed."""
        self.certain_at = None
        while position < len(text) and not self.done:
            position = self._state(text, position)
        return position

    @abstractmethod
    def _begin(self, text: str, position: int) -> int:
        """The state at the first character. A state returns where it stopped, for the next one to go on there."""

    @abstractmethod
    def _after_arguments(self, text: str, position: int) -> int:
        """The state behind the arguments."""

    def _open_arguments(self, text: str, position: int) -> int:
        """Up to behind their brace."""
        end = self._skip_to({"{": self._read_arguments}, text, position)
        if self._state == self._read_arguments:
            self.has_arguments, self._depth = True, 1
            self._give("{", end)
        return end

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
                self._end_arguments()
                break
        self._give(text[start:position], position)
        return position

    def _end_arguments(self) -> None:
        self.has_all_arguments, self._state = True, self._after_arguments

    def _passes(self, character: str) -> bool:
        """Whether this brace, bracket or quotation mark ends the value that it belongs to."""
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

    def _skip_to(self, states: dict[str, State], text: str, position: int) -> int:
        """Over white space to the one of these characters that leads to the next state."""
        character = text[position]
        if character in states:
            self._state = states[character]
        elif character not in WHITE_SPACE:
            raise Malformed(position)
        return position + 1
