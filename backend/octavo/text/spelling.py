"""Spelling: hands out logprobs so that the chosen tokens' texts, put together, are exactly the text that was shown.

What may become a stop string is held back, and cut off when it does. Knows no tokenizer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from octavo.outputs import Logprob

# The candidates at one position, the chosen one first.
Position = dict[int, Logprob]


class Spelling:
    """One completion's logprobs. Owns the positions whose text has not been shown yet."""

    #  shown text:  |  not covered yet  |
    #  waiting:     | piece | piece | piece ...
    #               each is handed out once the shown text covers it
    def __init__(self) -> None:
        self._waiting: deque[Position] = deque()
        self._shown = ""

    def push(self, positions: list[Position], shown: str, finished: bool) -> list[Position]:
        """Takes new positions and the text that was shown with them. Returns those whose text is certain now.

        With `finished` all are: each has what is left of its text, and the last one whatever else was shown.
        """
        self._waiting += positions
        self._shown += shown
        certain: list[Position] = []
        while self._waiting:
            piece = _chosen(self._waiting[0]).decoded_token
            if len(piece) > len(self._shown) and not finished:
                break
            is_last = finished and len(self._waiting) == 1
            part = self._shown if is_last else self._shown[: len(piece)]
            self._shown = self._shown[len(part) :]
            certain.append(_respell(self._waiting.popleft(), part))
        return certain


def _chosen(position: Position) -> Logprob:
    return next(iter(position.values()))


def _respell(position: Position, text: str) -> Position:
    token_id, chosen = next(iter(position.items()))
    return position if chosen.decoded_token == text else {**position, token_id: replace(chosen, decoded_token=text)}
