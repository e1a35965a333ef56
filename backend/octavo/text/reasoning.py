"""ReasoningReader: the reasoning at the beginning of a message, between two marks, told from what is said then.

Linear in the text; holds back only what may be part of a mark. Knows nothing of calls of tools.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.text.marks import WHITE_SPACE, MarkFinder


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks around reasoning."""

    opening: str
    closing: str

    @property
    def marks(self) -> frozenset[str]:
        """Those that may be special tokens of a vocabulary, which belong to the text then."""
        return frozenset({self.opening, self.closing})

    def is_open(self, prompt: str, begun: str = "") -> bool:
        """Whether the prompt ends with the opening mark, so that the message begins inside; or, where it ends with the
        beginning of the message, that does without the closing one."""
        if begun:
            return begun.lstrip(WHITE_SPACE).startswith(self.opening) and self.closing not in begun
        return prompt.rstrip(WHITE_SPACE).endswith(self.opening)


THINK = ReasoningFormat("<think>", "</think>")
MISTRAL_THINK = ReasoningFormat("[THINK]", "[/THINK]")
# By vLLM's names of its parsers.
REASONING_FORMATS = {"deepseek_r1": THINK, "qwen3": THINK, "mistral": MISTRAL_THINK}


def reasoning_format_of(template: str | None) -> ReasoningFormat | None:
    """The one that `template` speaks of, None for a model that does not reason in marks."""
    return next((each for each in (THINK, MISTRAL_THINK) if each.closing in (template or "")), None)


class ReasoningReader:
    """One message. Owns how far it has come, and what may be part of a mark."""

    #  white space | opening | white space | reasoning | closing | white space | what is said
    def __init__(self, reasoning: ReasoningFormat, is_open: bool) -> None:
        """`is_open`: the prompt has opened the reasoning already."""
        self._opening = MarkFinder(reasoning.opening)
        self._closing = MarkFinder(reasoning.closing)
        self._thoughts: list[str] = []
        self._said: list[str] = []
        self._state: Callable[[str, int], int] = self._open if is_open else self._begin

    def push(self, text: str, finished: bool = False) -> tuple[str, str]:
        """What is certainly reasoning, and what is certainly said behind it; with `finished` everything is certain."""
        self._thoughts, self._said, position = [], [], 0
        while position < len(text):
            position = self._state(text, position)
        if finished:
            self._said.append(self._opening.take_held())
            self._thoughts.append(self._closing.take_held())
        return "".join(self._thoughts), "".join(self._said)

    def _begin(self, text: str, position: int) -> int:
        position = self._opening.push(text, position, self._said)
        if self._said:
            self._said.append(self._opening.take_held())
            self._state = self._say
        elif self._opening.found:
            self._opening.take_held()
            self._state = self._open
        return position

    def _open(self, text: str, position: int) -> int:
        return self._skip_space(self._reason, text, position)

    def _reason(self, text: str, position: int) -> int:
        position = self._closing.push(text, position, self._thoughts)
        if self._closing.found:
            self._closing.take_held()
            self._state = self._close
        return position

    def _close(self, text: str, position: int) -> int:
        return self._skip_space(self._say, text, position)

    def _say(self, text: str, position: int) -> int:
        self._said.append(text[position:])
        return len(text)

    def _skip_space(self, state: Callable[[str, int], int], text: str, position: int) -> int:
        """It is the marks', and goes on to `state` behind it."""
        while position < len(text) and text[position] in WHITE_SPACE:
            position += 1
        if position < len(text):
            self._state = state
        return position
