"""A grammar process: `python -m octavo.grammar.worker --fd N`. Compiles grammars and computes masks for the engine.

Two of them run beside an engine: one only tries grammars out, and is killed where that takes too much; the other
follows the texts. Ends when the engine ends. Imports no torch.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from llguidance import LLMatcher

from octavo.grammar.compiler import Compiler, UnusableGrammar, why
from octavo.grammar.messages import Advance, Begin, Close, Mask, Masks, Open, Started, ToGrammar, Tried, Try
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
_PAGE_BYTES = resource.getpagesize()
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


class GrammarServer:
    """Serves one engine. Owns the compiler, the compiled grammars and the texts.

    Compiling, and what else takes long, has a thread of its own, so that other texts go on meanwhile. Both threads
    send, guarded by a lock; a text is only ever touched by the one that answers next.
    """

    def __init__(self, compiler: Compiler, connection: Connection[ToGrammar], memory_bytes: int) -> None:
        """memory_bytes: what may be taken from now on."""
        self._compiler = compiler
        self._connection = connection
        self._full_at_bytes = _memory()[1] + int(memory_bytes * _MOST_FILLED)
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
            case Try(asked, cpu_s):
                self._connection.send(Tried(self._try_out(asked, cpu_s)))
        return None

    def _send(self, masks: list[Mask]) -> None:
        if masks:
            with self._sending:
                self._connection.send(Masks(masks))

    def _try_out(self, asked: StructuredOutputs, cpu_s: float) -> str:
        # The signal ends the process, whatever native code it is in; by it the engine knows why.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            self._compiler.try_out(asked)
        except UnusableGrammar as error:
            return str(error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        return ""

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
        if _memory()[1] > self._full_at_bytes:
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


def serve(connection: Connection[ToGrammar]) -> None:
    """The whole life of a grammar process."""
    messages: list[ToGrammar] = []
    while not messages:
        if connection.wait(_LONGEST_WAIT_S):
            messages = connection.read()
    begin = messages[0]
    assert isinstance(begin, Begin) and len(messages) == 1, "nothing is asked before the answer to the first message"
    compiler = Compiler(begin.vocabulary)
    # Whoever takes too much is ended by a signal: that is no fault to keep a picture of.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _memory()[0] + begin.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send(Started())
    GrammarServer(compiler, connection, begin.memory_bytes).run()


def _memory() -> tuple[int, int]:
    """This process's address space, and what of it is resident, in bytes. Source: proc(5), statm."""
    with open("/proc/self/statm") as file:
        size, resident, *_ = map(int, file.read().split())
    return size * _PAGE_BYTES, resident * _PAGE_BYTES


def _exit_on_hang_up(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> int:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="octavo.grammar.worker")
    parser.add_argument("--fd", type=int, required=True, help="an inherited socket to the engine")
    fd = parser.parse_args().fd
    # The engine decides when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A trial's time limit; what the engine was started with would hold here, too.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    threading.Thread(target=_exit_on_hang_up, args=(fd,), name="octavo-watch", daemon=True).start()
    try:
        serve(Connection(socket.socket(fileno=fd), ToGrammar))
    except (EOFError, ConnectionError):
        # Not before its threads have ended, one of which may be compiling.
        os._exit(0)
    return 1


if __name__ == "__main__":
    sys.exit(main())
