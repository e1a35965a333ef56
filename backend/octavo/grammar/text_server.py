"""TextServer: follows the texts of one engine by their grammars, and says what each may go on with."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from llguidance import LLMatcher

from octavo.grammar.compiler import Compiler, UnusableGrammar, why
from octavo.grammar.memory import resident_bytes
from octavo.grammar.messages import Advance, Close, Mask, Masks, Open, ToGrammar
from octavo.structured_outputs import StructuredOutputs
from octavo.wire import Connection

logger = logging.getLogger(__name__)

# Compiled grammars that are kept, whether or not a text follows them; none where this share of the memory is taken.
_MAX_COMPILED = 64
_MOST_FILLED = 0.25
_LONGEST_WAIT_S = 60.0
# Of a processor. Most masks take a twentieth of a millisecond; a text that has had a slow one may have more of them.
_SLOW_S = 0.01
_SLOW_MASKS = 32
_BROKEN = "internal error while its grammar was followed"


@dataclass(slots=True)
class Text:
    """A text that follows a grammar. `matcher` is None until the grammar has been compiled and has caught up; it stays
    None where that has failed, and `error` says why.

    One that `is_slow` has a thread compute its masks, the next `num_slow` at least, so that others need not wait for
    them. `queued` are the tokens that the thread has been told and has not followed, by steps.
    """

    number: int
    end_token_ids: list[int]
    num_tokens: int = 0
    matcher: LLMatcher | None = None
    num_slow: int = 0
    error: str = ""
    queued: deque[list[int]] = field(default_factory=deque)

    @property
    def is_slow(self) -> bool:
        """Whether its next masks may take long."""
        return self.num_slow > 0


class TextServer:
    """Serves one engine. Owns the compiler, the compiled grammars and the texts.

    Compiling, and what else takes long, has a thread of its own, so that other texts go on meanwhile. Both threads
    send, guarded by a lock; a text is only ever touched by the one that answers next.
    """

    def __init__(self, compiler: Compiler, connection: Connection[ToGrammar], memory_bytes: int) -> None:
        """memory_bytes: what may be taken from now on."""
        self._compiler = compiler
        self._connection = connection
        self._full_at_bytes = resident_bytes() + int(memory_bytes * _MOST_FILLED)
        self._compiled: OrderedDict[StructuredOutputs, Future[LLMatcher]] = OrderedDict()
        self._texts: dict[int, Text] = {}
        self._sending = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "octavo-compile")

    def run(self) -> None:
        """Serves until the engine ends, which raises EOFError or ConnectionError."""
        while True:
            if self._connection.wait(_LONGEST_WAIT_S):
                answers = [self._handle(message) for message in self._connection.read()]
                self._send([mask for mask in answers if mask is not None])

    def _handle(self, message: ToGrammar) -> Mask | None:
        match message:
            case Advance(number, token_ids):
                return self._advance(number, token_ids)
            case Open(number, asked, token_ids, end_token_ids):
                text = self._texts[number] = Text(number, end_token_ids)
                self._thread.submit(self._begin, text, self._grammar(asked), token_ids)
            case Close(number):
                self._texts.pop(number, None)
        return None

    def _send(self, masks: list[Mask]) -> None:
        if masks:
            with self._sending:
                self._connection.send(Masks(masks))

    def _grammar(self, asked: StructuredOutputs) -> Future[LLMatcher]:
        found = self._compiled.get(asked)
        if found is None:
            self._make_room()
            found = self._compiled[asked] = self._thread.submit(self._compiler.compile, asked)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(asked)
        return found

    def _make_room(self) -> None:
        """Drops what is kept where it takes too much: texts have copies of their own, and go on."""
        if resident_bytes() > self._full_at_bytes:
            self._compiled.clear()
            ctypes.CDLL(None).malloc_trim(0)

    def _begin(self, text: Text, compiled: Future[LLMatcher], token_ids: list[int]) -> None:
        """On the thread, behind the compiling: the text's grammar is there, and catches up with the text."""
        try:
            matcher = compiled.result().deep_copy()
            mask = self._follow(text, matcher, token_ids)
            text.matcher = matcher  # from here on the other thread may answer
        except UnusableGrammar as error:
            mask = self._failed(text, len(token_ids), str(error))
        except Exception:
            logger.exception("a grammar broke")
            mask = self._failed(text, len(token_ids), _BROKEN)
        self._send([mask])

    def _failed(self, text: Text, num_tokens: int, error: str) -> Mask:
        text.num_tokens, text.error = num_tokens, error
        return Mask(text.number, num_tokens, b"", error=error)

    def _advance(self, number: int, token_ids: list[int]) -> Mask | None:
        """What may follow these tokens, too; None where the thread says it later, or the text has ended."""
        text = self._texts.get(number)
        if text is None:
            return None
        if text.matcher is not None and not text.is_slow and not text.queued:
            return self._follow(text, text.matcher, token_ids)
        text.queued.append(token_ids)
        self._thread.submit(self._follow_queued, text)
        return None

    def _follow_queued(self, text: Text) -> None:
        """On the thread, behind `_begin` and what was queued before."""
        token_ids = text.queued[0]
        try:
            if text.matcher is None:
                self._send([self._failed(text, text.num_tokens + len(token_ids), text.error)])
            else:
                self._send([self._follow(text, text.matcher, token_ids)])
        except Exception:
            logger.exception("a grammar broke")
            self._send([self._failed(text, text.num_tokens, _BROKEN)])
        finally:
            text.queued.popleft()

    def _follow(self, text: Text, matcher: LLMatcher, token_ids: list[int]) -> Mask:
        began_at_s = time.thread_time()
        text.num_tokens += len(token_ids)
        if token_ids:
            matcher.consume_tokens(token_ids)
        allowed = bytearray(matcher.compute_bitmask())
        if matcher.is_error():
            return Mask(text.number, text.num_tokens, b"", error=f"its grammar cannot be followed: {why(matcher)}")
        self._allow_ends(allowed, text.end_token_ids)
        is_slow = time.thread_time() - began_at_s > _SLOW_S
        text.num_slow = _SLOW_MASKS if is_slow else max(text.num_slow - 1, 0)
        is_complete = matcher.is_stopped()
        return Mask(text.number, text.num_tokens, bytes(allowed), is_complete, text.is_slow)

    def _allow_ends(self, allowed: bytearray, end_token_ids: list[int]) -> None:
        """Where the text may end, the tokens that end it may follow."""
        byte, bit = divmod(self._compiler.end_token_id, 8)
        if allowed[byte] >> bit & 1:
            allowed[byte] &= ~(1 << bit)
            for token_id in end_token_ids:
                if token_id // 8 < len(allowed):
                    allowed[token_id // 8] |= 1 << token_id % 8
