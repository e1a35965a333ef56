"""TextFollower: the process that follows texts by their grammars, and what each text may go on with.

When the process dies or hangs another takes over: a text's state follows from its grammar and its tokens. Only
`FollowedText.allowed` may be called by another thread than the engine's.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time

from octavo.grammar.messages import Advance, Close, Mask, Masks, Open
from octavo.grammar.process import CANNOT_START, MAX_FALSE_STARTS, TEXTS, GrammarProcess
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# How long a step waits for masks before it goes on without the rows whose masks have not come.
PATIENCE_S = 0.25
# Of a process that says nothing at all (while others want its processor, a second of compiling takes many), and of one
# that answers others, but not a text.
_HUNG_S = 20.0
_FORGOTTEN_S = 60.0
_MAX_DEATHS = 3
_MEMORY_BYTES = 4 << 30
_SLICE_S = 0.01


class FollowedText:
    """One text and its grammar: a TokenMask for the scheduler and the runner. Owned by whoever opened it.

    `error` says why its grammar cannot be followed any further. `was_missed`: a step went on without its mask.
    `is_complete`: nothing may follow but an end. `is_followed`: the process knows it. `is_slow`: no step waits for its
    masks.
    """

    __slots__ = (
        "_follower",
        "asked",
        "asked_at",
        "end_token_ids",
        "error",
        "is_complete",
        "is_followed",
        "is_slow",
        "mask",
        "num_deaths",
        "number",
        "token_ids",
        "was_missed",
    )

    def __init__(
        self,
        follower: TextFollower,
        number: int,
        asked: StructuredOutputs,
        token_ids: list[int],
        end_token_ids: list[int],
    ) -> None:
        self._follower = follower
        self.number = number
        self.asked = asked
        self.token_ids = token_ids
        self.end_token_ids = end_token_ids
        self.mask: bytes | None = None
        self.asked_at = follower.awake_s
        self.error = ""
        self.is_complete = False
        self.is_followed = False
        self.is_slow = False
        self.was_missed = False
        self.num_deaths = 0

    @property
    def is_ready(self) -> bool:
        """Whether its mask is there, or may be expected before a step needs it."""
        return self.mask is not None or (self._follower.is_up and self.is_followed and not self.is_slow)

    @property
    def has_arrived(self) -> bool:
        """Whether its mask is there."""
        return self.mask is not None

    def allowed(self) -> bytes:
        """The tokens that may come next: bit t % 8 of byte t // 8. None of them where the mask does not come."""
        if self.mask is None:
            self._follower.wait_for(self)
        if self.mask is None:
            self.was_missed = True
            return b""
        return self.mask

    def advance(self, token_ids: list[int]) -> None:
        """It has more tokens."""
        self.mask = None
        self.was_missed = False
        self.token_ids += token_ids
        self.asked_at = self._follower.awake_s
        self._follower.tell(Advance(self.number, token_ids))
        if self._follower.is_gone:
            self.give_up(CANNOT_START)

    def give_up(self, error: str) -> None:
        """Nobody will say any more what may follow."""
        self.mask, self.error = b"", error

    def close(self) -> None:
        """It has ended."""
        self._follower.close_text(self)

    def take(self, mask: Mask) -> None:
        """Hears what may follow, if it is about the text as it is now."""
        if mask.num_tokens == len(self.token_ids):
            self.mask = mask.allowed
            self.is_complete = mask.is_complete
            self.is_slow = mask.is_slow
            self.error = mask.error
            self.is_followed = True
            self.num_deaths = 0


class TextFollower:
    """Owns the process and the texts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Starts the process."""
        self._vocabulary = vocabulary
        self._process = GrammarProcess(vocabulary, TEXTS, _MEMORY_BYTES)
        self._texts: dict[int, FollowedText] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._num_false_starts = 0
        self._heard_at = 0.0
        # Since a step has waited in vain: the next rows, and steps, do not wait until it is heard again.
        self._is_silent = False

    @property
    def is_gone(self) -> bool:
        """Whether no process could be started, and none will be."""
        return self._num_false_starts >= MAX_FALSE_STARTS

    @property
    def is_up(self) -> bool:
        """Whether masks are computed at once."""
        return self._process.is_up

    @property
    def awake_s(self) -> float:
        """The process's clock."""
        return self._process.awake_s

    @property
    def pid(self) -> int:
        """The process, for tests and debuggers."""
        return self._process.pid

    def fileno(self) -> int:
        """To be polled for what `turn` hears, unless it is gone."""
        return self._process.fileno()

    def open(self, asked: StructuredOutputs, token_ids: list[int], end_token_ids: list[int]) -> FollowedText:
        """Follows a text from now on: the tokens that it has so far, and those that may end it."""
        text = FollowedText(self, next(self._numbers), asked, token_ids, end_token_ids)
        if self.is_gone:
            text.give_up(CANNOT_START)
        with self._lock:
            self._texts[text.number] = text
        self.tell(_opening(text))
        return text

    def tell(self, message: Open | Advance | Close) -> None:
        """Passes a message on; a process that is not up yet will hear of all texts as they are then."""
        with self._lock:
            if self._process.is_up:
                self._process.tell(message)

    def close_text(self, text: FollowedText) -> None:
        """Follows a text no longer. Whoever still waits for its mask gets one: it does not matter which."""
        with self._lock:
            self._texts.pop(text.number, None)
            text.mask = text.mask or bytes([255]) * (len(self._vocabulary.tokens) // 8 + 1)
            if self._process.is_up:
                self._process.tell(Close(text.number))

    def turn(self, timeout_s: float = 0.0) -> None:
        """Sends what is queued and hears what has come; starts another process where this one is dead or hung."""
        with self._lock:
            if self.is_gone:
                return
            if not self._hear(timeout_s):
                self._start_anew("has died" if self._process.is_up else "does not come up")
            elif self._is_hung():
                self._start_anew("has not answered for seconds")

    def flush(self) -> None:
        """Sends what is queued."""
        with self._lock:
            self._process.flush()

    def wait_for(self, text: FollowedText) -> None:
        """Until its mask is there, the process is dead, or patience has run out, for this text or one before it."""
        deadline = time.monotonic() + (0.0 if self._is_silent else PATIENCE_S)
        with self._lock:
            while text.mask is None and self._process.is_up:
                if not self._hear(0.0 if self._is_silent else _SLICE_S):
                    return
                if time.monotonic() >= deadline:
                    self._is_silent = text.mask is None
                    return

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()

    def _hear(self, timeout_s: float) -> bool:
        """False when the process is dead."""
        was_up = self._process.is_up
        messages = self._process.turn(timeout_s)
        if messages:
            self._heard_at, self._is_silent = self._process.awake_s, False
        if self._process.is_up and not was_up:
            for text in self._texts.values():
                text.asked_at = self._process.awake_s
                self._process.tell(_opening(text))
            self._process.flush()
        for message in messages or []:
            for mask in message.masks if isinstance(message, Masks) else []:
                if mask.number in self._texts:
                    self._texts[mask.number].take(mask)
        return messages is not None

    def _is_hung(self) -> bool:
        if not self._process.is_up:
            return False
        waiting = [text.asked_at for text in self._texts.values() if text.mask is None]
        now, longest = self._process.awake_s, min(waiting, default=float("inf"))
        # Many grammars are compiled one after the other: a process that goes on answering is not hung.
        return now - max(longest, self._heard_at) > _HUNG_S or now - longest > _FORGOTTEN_S

    def _start_anew(self, cause: str) -> None:
        logger.warning("the grammar process %s; another one follows %d texts", cause, len(self._texts))
        self._num_false_starts = 0 if self._process.is_up else self._num_false_starts + 1
        self._process.kill()
        while not self.is_gone:
            try:
                self._process = GrammarProcess(self._vocabulary, TEXTS, _MEMORY_BYTES)
                break
            except OSError:
                logger.exception("no grammar process could be started")
                self._num_false_starts += 1
        self._heard_at = 0.0
        for text in self._texts.values():
            text.is_followed = False
            if text.mask is not None:
                continue
            text.num_deaths += 1
            if self.is_gone:
                text.give_up(CANNOT_START)
            elif text.num_deaths >= _MAX_DEATHS:
                text.give_up(f"the process that follows its grammar {cause} {_MAX_DEATHS} times")


def _opening(text: FollowedText) -> Open:
    return Open(text.number, text.asked, list(text.token_ids), text.end_token_ids)
