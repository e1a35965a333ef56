"""ShownParts: the parts of one answer's message that its client is shown. Knows no protocol, no format of a model."""

from __future__ import annotations

import uuid

import octavo
from octavo_kserve.openai.request import MessageSettings


class ShownParts:
    """One message. Owns the reader of its text."""

    def __init__(self, settings: MessageSettings, prompt: str) -> None:
        """`prompt` is the text before the message."""
        self._settings = settings
        self._reader = settings.format.reader(prompt, settings.begun)
        self._num_calls = 0

    @property
    def has_called(self) -> bool:
        """Whether it calls tools, and all calls that are shown have all their arguments so far."""
        open_call = self._reader.open_call
        return self._num_calls > 0 and (open_call is None or not self._is_call_shown(open_call))

    def push(self, text: str, finished: bool) -> list[octavo.MessagePart]:
        """What is new, in the order in which it was written."""
        shown = [part for part in self._reader.push(text, finished) if self._is_shown(part)]
        self._num_calls += sum(part.name is not None for part in shown)
        return shown

    def new_call_id(self) -> str:
        """An id for a call, as long as the model's template wants them."""
        tools = self._settings.format.tools
        assert tools is not None
        number = uuid.uuid4().hex
        return f"call_{number[:24]}" if tools.id_length is None else number[: tools.id_length]

    def _is_shown(self, part: octavo.MessagePart) -> bool:
        if part.kind is octavo.PartKind.REASONING:
            return self._settings.shows_reasoning
        return self._is_call_shown(part.call)

    def _is_call_shown(self, call: int) -> bool:
        return call == 0 or self._settings.parallel_tool_calls
