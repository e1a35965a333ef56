"""MessageReader: a model's text, as it comes, to the parts of a chat message: reasoning, content, calls of tools.

Knows no request and no host.
"""

from __future__ import annotations

from octavo.text.message_part import MessagePart, PartKind, merged
from octavo.text.reasoning import ReasoningFormat, ReasoningReader
from octavo.text.tool_calls import ToolCallReader
from octavo.text.tool_formats import ToolFormat


class MessageReader:
    """One message. However the text is cut into pieces, the parts put together are the same."""

    def __init__(
        self, tools: ToolFormat | None, reasoning: ReasoningFormat | None, prompt: str, begun: str = ""
    ) -> None:
        """Looks for what is not None. `prompt` is the text before the message: it may have opened the reasoning.

        So may `begun` have done, what of the message the prompt ends with, where it is one to be continued.
        """
        self._tools = None if tools is None else ToolCallReader(tools)
        self._reasoning = None if reasoning is None else ReasoningReader(reasoning, reasoning.is_open(prompt, begun))

    @property
    def open_call(self) -> int | None:
        """The number of the first call whose arguments have not ended; at the end also of one that had only begun."""
        return None if self._tools is None else self._tools.open_call

    def push(self, text: str, finished: bool = False) -> list[MessagePart]:
        """The parts that `text` has made certain, as few as possible; with `finished` all that is left."""
        thoughts = ""
        if self._reasoning is not None:
            thoughts, text = self._reasoning.push(text, finished)
        parts = [MessagePart(PartKind.REASONING, thoughts)]
        if self._tools is None:
            parts.append(MessagePart(PartKind.CONTENT, text))
        else:
            parts += self._tools.push(text, finished)
        return merged(parts)
