"""MarkFinder: lets text pass until a mark comes, and holds back only what may be its beginning.

White space before a mark belongs to it: models and templates put line breaks there. Knows no mark by name.
"""

from __future__ import annotations

WHITE_SPACE = " \t\r\n"


class MarkFinder:
    """Looks for one mark in a text that comes in pieces. Owns what may belong to the mark. Linear in the text."""

    #  ... text | white space | the mark's first characters |
    #    shown  |                   held                    |
    def __init__(self, mark: str) -> None:
        """`mark` begins with a character that does not come again in it, so that no match can overlap another."""
        assert mark and mark[0] not in mark[1:]
        self._mark = mark
        self._space: list[str] = []
        self._num_matched = 0

    @property
    def found(self) -> bool:
        """Whether the whole mark has come."""
        return self._num_matched == len(self._mark)

    def take_held(self) -> str:
        """Hands over what is held, the mark itself included, and looks for the next one."""
        held = "".join(self._space) + self._mark[: self._num_matched]
        self._space, self._num_matched = [], 0
        return held

    def push(self, text: str, position: int, shown: list[str]) -> int:
        """Reads `text` from `position` on, up to behind the mark or to the end; returns where it stopped.

        What is certainly no part of a mark is added to `shown`.
        """
        while position < len(text) and not self.found:
            if self._num_matched == 0:
                position = self._pass(text, position, shown)
            elif text[position] == self._mark[self._num_matched]:
                self._num_matched += 1
                position += 1
            else:
                shown.append(self.take_held())
        return position

    def _pass(self, text: str, position: int, shown: list[str]) -> int:
        """Up to behind the next character that may begin the mark."""
        start = text.find(self._mark[0], position)
        plain = text[position:] if start < 0 else text[position:start]
        solid = plain.rstrip(WHITE_SPACE)
        if solid:
            shown += [*self._space, solid]
            self._space = []
        if len(solid) < len(plain):
            self._space.append(plain[len(solid) :])
        if start < 0:
            return len(text)
        self._num_matched = 1
        return start + 1
