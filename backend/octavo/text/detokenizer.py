"""Detokenizer: one completion's tokens to the text a caller sees, with stop strings.

Knows nothing of why a sequence ends otherwise, nor of streams. The same tokens give the same text however they are
pushed, which is what makes a replay invisible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one push brought.

    `text` may be shown. `pieces` has one entry for each token that counts, before anything is held back or cut; what
    a push without tokens flushes belongs to none. `stop` is the stop string that ended the text. `num_tokens` of the
    pushed tokens count: those after a stop do not.
    """

    text: str
    pieces: list[str]
    stop: str | None
    num_tokens: int


class Detokenizer:
    """The text of one completion. Owns what is not yet certain, or held back because it may begin a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        self._skipped = tokenizer.special_token_ids if params.skip_special_tokens else frozenset[int]()
        self._stream = tokenizer.decoding.stream(prompt_token_ids, self._skipped)
        self._params = params
        self._num_held_back = max(map(len, params.stop), default=1) - 1
        self._held = ""
        self._num_tokens = 0
        self._ended = False

    def push(self, token_ids: Sequence[int], finished: bool) -> TextDelta:
        """Takes the next tokens; with `finished` everything held is given out. After the end nothing counts."""
        shown: list[str] = []
        pieces: list[str] = []
        stop: str | None = None
        for token_id in token_ids:
            if self._ended:
                break
            piece = "" if token_id in self._skipped else self._stream.push(token_id)
            self._num_tokens += 1
            pieces.append(piece)
            if piece:
                stop = self._take(piece, shown)
        if finished and not self._ended:
            rest = self._stream.flush()
            if pieces:
                pieces[-1] += rest
            stop = self._take(rest, shown)
            self._ended = True
        if self._ended:
            shown.append(self._held)
            self._held = ""
        return TextDelta("".join(shown), pieces, stop, len(pieces))

    def _take(self, piece: str, shown: list[str]) -> str | None:
        """Moves what can be in no stop string any more to `shown`. Returns the stop string that `piece` completed."""
        if not self._params.stop:
            shown.append(piece)
            return None
        held = self._held + piece
        match = self._first_stop(held, len(self._held))
        if match is None:
            num_sure = max(len(held) - self._num_held_back, 0)
            shown.append(held[:num_sure])
            self._held = held[num_sure:]
            return None
        start, stop = match
        self._held = held[: start + len(stop) if self._params.include_stop_str_in_output else start]
        self._ended = True
        return stop

    def _first_stop(self, held: str, num_before: int) -> tuple[int, str] | None:
        """Where the earliest stop string stands that ends behind the first `num_before` characters, and which it is.

        Of two at the same place the one listed first. What an earlier token completed, before `min_tokens` were
        reached, stays text.
        """
        if self._num_tokens < self._params.min_tokens:
            return None
        first: tuple[int, str] | None = None
        for stop in self._params.stop:
            start = held.find(stop, max(num_before - len(stop) + 1, 0))
            if start >= 0 and (first is None or start < first[0]):
                first = start, stop
        return first
