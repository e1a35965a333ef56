"""ToolCallReader: a text that comes in pieces, taken apart into content and calls of tools as one format frames them.

What turns out to be no call is content, every character of it, and nothing is held back that is certain. Linear in the
text. Knows no template and no schema.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.text.call_reader import CallReader, Malformed
from octavo.text.json_call_reader import JsonCallReader
from octavo.text.marks import WHITE_SPACE, MarkFinder
from octavo.text.message_part import MessagePart, PartKind
from octavo.text.named_call_reader import NamedCallReader
from octavo.text.tool_formats import ToolFormat


class ToolCallReader:
    """One message. Owns what may be part of a frame and is not certain yet: the text after `_certain`, and `_held`."""

    #  content | opening | call | separator | call | closing | content
    def __init__(self, tools: ToolFormat) -> None:
        self._tools = tools
        self._finder = MarkFinder(tools.opening)
        self._is_framed = not tools.bare
        self._call = self._new_call()
        self._num_calls = 0
        self._open_call: int | None = None
        self._parts: list[MessagePart] = []
        self._held: list[str] = []
        self._certain = 0
        self._num_closed = 0
        self._behind_call = False
        self._state: Callable[[str, int], int] = self._read_call if tools.bare else self._read_content

    @property
    def open_call(self) -> int | None:
        """The number of the first call whose arguments have not ended, whether they will or not.

        Once the text has ended this may also be one that had only begun.
        """
        return self._open_call

    def push(self, text: str, finished: bool = False) -> list[MessagePart]:
        """What is certain now; with `finished` everything."""
        self._parts, self._certain, position = [], 0, 0
        while position < len(text):
            try:
                position = self._state(text, position)
            except Malformed as fault:
                position = fault.position
                self._give_up(text, position)
        self._held.append(text[self._certain :])
        if finished:
            self._finish()
        return self._parts

    def _read_content(self, text: str, position: int) -> int:
        shown: list[str] = []
        position = self._finder.push(text, position, shown)
        self._show("".join(shown))
        self._certain = position
        if self._finder.found:
            self._held = [self._finder.take_held()]
            self._is_framed = True
            self._call = self._new_call()
            self._state = self._open_list if self._tools.in_list else self._read_call
        return position

    def _open_list(self, text: str, position: int) -> int:
        """Or a call that is none of a list, but begins with its name."""
        if text[position] == "[":
            self._state = self._read_call
        elif text[position] not in WHITE_SPACE:
            self._call, self._state = NamedCallReader(self._tools.named_marks), self._read_call
            return position
        return position + 1

    def _read_call(self, text: str, position: int) -> int:
        was_certain, is_broken = self._call.certain, False
        try:
            position = self._call.push(text, position)
        except Malformed as fault:
            if not self._call.certain:
                raise
            position, is_broken = fault.position, True
        finally:
            self._take_call(was_certain)
        if self._call.done:
            self._held, self._certain = [], position
        if self._call.done or is_broken:
            is_named, self._behind_call = isinstance(self._call, NamedCallReader), True
            self._call, self._state = self._new_call(), self._read_content if is_named else self._after_call
        return position

    def _new_call(self) -> CallReader:
        return JsonCallReader(self._tools.closing[:1], self._is_framed)

    def _take_call(self, was_certain: bool) -> None:
        """Gives out what is certain of the call."""
        call = self._call
        if not call.certain:
            return
        if not was_certain:
            self._begin_call()
        if call.has_all_arguments and self._open_call == self._num_calls - 1:
            self._open_call = None
        if call.certain_at is not None:
            self._parts.append(MessagePart(PartKind.TOOL_CALL, "".join(call.fresh), self._num_calls - 1))
            call.fresh.clear()
            self._held, self._certain = [], call.certain_at

    def _begin_call(self) -> None:
        if self._open_call is None:
            self._open_call = self._num_calls
        self._parts.append(MessagePart(PartKind.TOOL_CALL, "", self._num_calls, self._call.name))
        self._num_calls += 1
        self._is_framed = True

    def _after_call(self, text: str, position: int) -> int:
        """One character: of the closing mark, the separator, or white space before them."""
        character, closing = text[position], self._tools.closing
        if closing and character == closing[self._num_closed]:
            self._num_closed += 1
            if self._num_closed == len(closing):
                self._go_on(position + 1)
        elif self._num_closed:
            raise Malformed(position)
        elif character == self._tools.separator:
            self._state = self._read_call
        elif character not in WHITE_SPACE:
            raise Malformed(position)
        return position + 1

    def _go_on(self, certain: int) -> None:
        """With content, from here."""
        self._held, self._certain, self._num_closed = [], certain, 0
        self._state = self._read_content

    def _give_up(self, text: str, position: int) -> None:
        """It was no call, or nothing that may follow one: content goes on from `position`."""
        self._show("".join(self._held) + text[self._certain : position])
        self._call = self._new_call()
        self._go_on(position)

    def _finish(self) -> None:
        held = "".join(self._held) + self._finder.take_held()
        self._held = []
        # Of a call, what is held is the rest of its frame. White space behind it says nothing.
        in_frame = self._state == self._after_call or self._call.certain or self._call.is_cut
        if self._call.is_cut:
            self._begin_call()
        elif self._call.has_begun and not self._call.certain and self._open_call is None:
            self._open_call = self._num_calls
        if not in_frame and not (self._behind_call and held.isspace()):
            self._show(held)

    def _show(self, text: str) -> None:
        if text:
            self._behind_call = False
            self._parts.append(MessagePart(PartKind.CONTENT, text))
