"""NamedCallReader: a call that is a name, a mark and arguments, as newer Mistral models write it.

Some put an id, behind a mark of its own, between name and arguments; some no mark at all. Knows no mark by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from octavo.text.call_reader import CallReader, Malformed

NAME = re.compile(r"[\w./:-]+")


class NamedCallReader(CallReader):
    """Reads from the first letter of the name on. `marks`: the arguments', and that of an id."""

    def __init__(self, marks: Sequence[str]) -> None:
        super().__init__()
        self._arguments_mark, self._id_mark = marks
        self._marks = tuple(marks)
        self._written: list[str] = []
        self._mark = ""

    @property
    def has_begun(self) -> bool:
        """Whether a letter of the name has come."""
        return bool(self._written)

    def _begin(self, text: str, position: int) -> int:
        """The name."""
        match = NAME.match(text, position)
        if match is not None:
            self._written.append(match[0])
            return match.end()
        if not self._written or text[position] not in "{[":
            raise Malformed(position)
        return self._behind_name(text, position)

    def _behind_name(self, text: str, position: int) -> int:
        """A mark, or the arguments at once."""
        if text[position] == "{":
            self.name = "".join(self._written)
            return self._open_arguments(text, position)
        self._state = self._read_mark
        return position

    def _read_mark(self, text: str, position: int) -> int:
        """One character."""
        self._mark += text[position]
        if self._mark == self._arguments_mark:
            self.name, self._state = "".join(self._written), self._open_arguments
        elif self._mark == self._id_mark:
            self.name = "".join(self._written)
            self._marks, self._mark, self._state = (self._arguments_mark,), "", self._skip_id
        elif not any(mark.startswith(self._mark) for mark in self._marks):
            raise Malformed(position)
        return position + 1

    def _skip_id(self, text: str, position: int) -> int:
        match = NAME.match(text, position)
        if match is not None:
            return match.end()
        self._state = self._read_mark
        return position

    def _read_arguments(self, text: str, position: int) -> int:
        end = super()._read_arguments(text, position)
        self.done = self._state == self._after_arguments
        return end

    def _after_arguments(self, text: str, position: int) -> int:
        raise AssertionError("the arguments are the end")
