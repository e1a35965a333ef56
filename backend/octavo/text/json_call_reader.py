"""JsonCallReader: a call that is a JSON object with a name and arguments, in either order.

What else is in it is left out where it is certain to be a call. Knows nothing of what stands around the object but the
character with which that goes on.
"""

from __future__ import annotations

import json
import re

from octavo.text.call_reader import CallReader, Malformed
from octavo.text.json_text import JsonText
from octavo.text.marks import WHITE_SPACE

_TEXTS = ("name", "type", "id")
_ARGUMENTS = ("arguments", "parameters")
_NONE = "null"


class JsonCallReader(CallReader):
    """Reads from the opening brace on. Arguments may also be a string of JSON, which is given out as what it says."""

    def __init__(self, end: str = "", is_framed: bool = False) -> None:
        """`end` is what comes behind the object: a call that lacks its last brace ends there.

        One that `is_framed` is a call also without arguments.
        """
        super().__init__()
        self._end = end
        self._is_framed = is_framed
        self._seen: set[str] = set()
        self._key = ""
        self._string: list[str] = []
        self._text = JsonText()

    @property
    def is_cut(self) -> bool:
        """Whether it is a call if nothing follows: one of no frame says at least that there are arguments."""
        return super().is_cut and (self._is_framed or _ARGUMENTS[0] in self._seen)

    def _begin(self, text: str, position: int) -> int:
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
        if text[position] == '"':
            self._state = self._open_text_arguments
            return position + 1
        if text[position] == _NONE[0]:
            self._state = self._read_none
            return position
        return self._open_arguments(text, position)

    def _read_none(self, text: str, position: int) -> int:
        """One character of what says that there are no arguments."""
        self._string.append(text[position])
        written = "".join(self._string)
        if not _NONE.startswith(written):
            raise Malformed(position)
        if written == _NONE:
            self._state = self._after_arguments
        return position + 1

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
        self._state = self._after_arguments

    def _open_text_arguments(self, text: str, position: int) -> int:
        """One character, up to behind the brace that the string says first; one that says nothing is none."""
        if text[position] == '"' and not self._text.is_escaping:
            self._state = self._after_arguments
            return position + 1
        said = self._text.push(text[position]).strip(WHITE_SPACE)
        if said.startswith("{"):
            self.has_arguments, self._state = True, self._read_text_arguments
            self._give(said, position + 1)
        elif said:
            raise Malformed(position)
        return position + 1

    def _read_text_arguments(self, text: str, position: int) -> int:
        """Up to the end of the string, whatever it says."""
        end = self._end_of_string(text, position)
        self._give(self._text.push(text[position : end if self._in_string else end - 1]), end)
        if not self._in_string:
            self._end_arguments()
        return end

    def _after_arguments(self, text: str, position: int) -> int:
        """Behind any value."""
        if text[position] == "}":
            self._end_object(position)
            return position + 1
        return self._skip_to({",": self._skip_rest if self.certain else self._before_key}, text, position)

    def _end_object(self, position: int) -> None:
        if self.is_cut:
            self.has_arguments = self.has_all_arguments = True
            self._give("{}", position + 1)
        if not self.certain:
            raise Malformed(position)
        self.done = True

    def _skip_rest(self, text: str, position: int) -> int:
        """Up to the end of the object, whatever that is made of."""
        while position < len(text):
            if self._in_string:
                position = self._end_of_string(text, position)
                continue
            match = _IN_REST.search(text, position)
            if match is None:
                return len(text)
            character, is_inside = match[0], self._depth > 0
            if character == self._end and not (is_inside and character == "]"):
                raise Malformed(match.start())
            position = match.end()
            if character == "}" and not is_inside:
                self.done = True
                break
            if character != "<" and (is_inside or character != "]"):
                self._passes(character)
        return position


_IN_REST = re.compile(r'["{}\[\]<]')
