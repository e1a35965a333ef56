"""Texts that follow their grammars: in the server that does it, and as the engine sees them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from grammar.byte_vocabulary import BYTES
from llguidance import LLMatcher

from octavo.grammar import text_server
from octavo.grammar.compiler import Compiler
from octavo.grammar.followed_text import PATIENCE_S as PATIENCE_OF_A_STEP_S
from octavo.grammar.followed_text import TextFollower
from octavo.grammar.messages import Advance, Close, FromGrammar, Mask, Masks, Open, ToGrammar
from octavo.grammar.text_server import TextServer
from octavo.structured_outputs import StructuredOutputs
from octavo.wire import Connection

PATIENCE_S = 20.0
WORD = StructuredOutputs("regex", "ab?[0-9]+")
END = 256


@pytest.fixture
def server() -> Iterator[Connection[FromGrammar]]:
    """The engine's end of the connection to a server in this process."""
    ours, theirs = socket.socketpair()
    served: Connection[ToGrammar] = Connection(theirs, ToGrammar)

    def run() -> None:
        with contextlib.suppress(EOFError):
            TextServer(Compiler(BYTES), served, 1 << 30).run()

    thread = threading.Thread(target=run)
    thread.start()
    connection: Connection[FromGrammar] = Connection(ours, FromGrammar)
    yield connection
    connection.close()
    thread.join(PATIENCE_S)
    served.close()


def next_mask(connection: Connection[FromGrammar]) -> Mask:
    assert connection.wait(PATIENCE_S)
    (message,) = connection.read()
    assert isinstance(message, Masks)
    (mask,) = message.masks
    return mask


def tokens_of(mask: Mask) -> set[int]:
    return {token_id for token_id in range(8 * len(mask.allowed)) if mask.allowed[token_id // 8] >> token_id % 8 & 1}


@pytest.mark.parametrize("slow_s", [1000.0, -1.0])
def test_a_mask_follows_every_step_of_a_text(
    server: Connection[FromGrammar], monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    monkeypatch.setattr(text_server, "_SLOW_S", slow_s)
    server.send(Open(7, WORD, [], [END]))
    assert tokens_of(first := next_mask(server)) == {*b"a"}
    assert (first.number, first.num_tokens, first.is_slow) == (7, 0, slow_s < 0)
    server.send(Advance(7, [*b"a"]))
    assert tokens_of(next_mask(server)) == {*b"b0123456789"}
    server.send(Advance(7, [*b"b1"]))
    last = next_mask(server)
    assert tokens_of(last) == {*b"0123456789", END} and last.num_tokens == 3 and not last.is_complete
    server.send(Close(7))
    server.send(Advance(7, [*b"1"]))
    server.send(Open(8, WORD, [*b"ab"], []))
    assert (after := next_mask(server)).number == 8 and tokens_of(after) == {*b"0123456789"}


def masks_of(server: Connection[FromGrammar], count: int) -> list[Mask]:
    found: list[Mask] = []
    while len(found) < count:
        assert server.wait(PATIENCE_S)
        found += [mask for message in server.read() if isinstance(message, Masks) for mask in message.masks]
    return found


def test_a_text_with_a_slow_mask_is_slow_for_a_while_and_not_for_good(
    server: Connection[FromGrammar], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_server, "_SLOW_MASKS", 2)
    monkeypatch.setattr(text_server, "_SLOW_S", -1.0)
    server.send(Open(7, StructuredOutputs("regex", "a+"), [], [END]))
    assert next_mask(server).is_slow
    monkeypatch.setattr(text_server, "_SLOW_S", 1000.0)
    seen = []
    for _ in range(4):
        server.send(Advance(7, [*b"a"]))
        seen.append(next_mask(server).is_slow)
    assert seen == [True, False, False, False]


def test_grammars_are_not_kept_where_memory_runs_short_and_their_texts_go_on(
    server: Connection[FromGrammar], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[StructuredOutputs] = []
    compile_one = Compiler.compile

    def compile_and_note(self: Compiler, asked: StructuredOutputs) -> LLMatcher:
        compiled.append(asked)
        return compile_one(self, asked)

    monkeypatch.setattr(Compiler, "compile", compile_and_note)
    other = StructuredOutputs("regex", "x+")
    for number, asked in enumerate((WORD, WORD, other, WORD)):
        server.send(Open(number, asked, [], [END]))
        next_mask(server)
    assert compiled == [WORD, other]
    monkeypatch.setattr(text_server, "resident_bytes", lambda: 1 << 60)
    server.send(Open(4, StructuredOutputs("regex", "y+"), [], [END]))
    next_mask(server)
    server.send(Open(5, WORD, [], [END]))
    next_mask(server)
    assert compiled[2:] == [StructuredOutputs("regex", "y+"), WORD]
    server.send(Advance(0, [*b"a"]))
    assert tokens_of(next_mask(server)) == {*b"b0123456789"}


def test_tokens_that_come_before_the_grammar_has_been_compiled_are_followed_in_order(
    server: Connection[FromGrammar],
) -> None:
    for message in (Open(7, WORD, [], [END]), Advance(7, [ord("a")]), Advance(7, [ord("b")]), Advance(7, [ord("4")])):
        server.queue(message)
    server.flush()
    masks = masks_of(server, 4)
    digits = set(range(ord("0"), ord("9") + 1))
    assert [mask.num_tokens for mask in masks] == [0, 1, 2, 3]
    assert [tokens_of(mask) for mask in masks] == [{ord("a")}, {ord("b")} | digits, digits, digits | {END}]


def test_a_grammar_that_cannot_be_compiled_is_an_error_of_every_step(server: Connection[FromGrammar]) -> None:
    server.queue(Open(7, StructuredOutputs("regex", "("), [], [END]))
    server.queue(Advance(7, [65]))
    server.flush()
    masks = masks_of(server, 2)
    assert [mask.num_tokens for mask in masks] == [0, 1]
    assert all(mask.error and not mask.allowed for mask in masks)


def test_a_token_that_could_not_come_is_an_error_of_that_text(server: Connection[FromGrammar]) -> None:
    server.send(Open(1, WORD, [*b"x"], []))
    assert next_mask(server).error.startswith("its grammar cannot be followed")
    server.send(Open(2, StructuredOutputs("regex", "("), [], []))
    assert "a regular expression that can be followed" in next_mask(server).error


@pytest.fixture(scope="module")
def follower() -> Iterator[TextFollower]:
    made = TextFollower(BYTES)
    yield made
    made.close()


def turn_until(follower: TextFollower, is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_reached():
        assert time.monotonic() < deadline
        follower.turn(0.01)


def test_a_step_counts_on_a_mask_unless_masks_of_its_text_are_slow(follower: TextFollower) -> None:
    text = follower.open(WORD, [], [])
    assert not text.is_ready, "the process is not up yet"
    turn_until(follower, lambda: text.has_arrived)
    text.advance([*b"a"])
    assert text.is_ready and not text.has_arrived
    turn_until(follower, lambda: text.has_arrived)
    text.is_slow = True
    text.advance([*b"b"])
    assert not text.is_ready
    turn_until(follower, lambda: text.is_ready)
    assert text.allowed()


def test_whoever_waits_for_a_text_that_ends_is_not_kept_waiting(follower: TextFollower) -> None:
    text = follower.open(WORD, [], [])
    text.close()
    began_at = time.monotonic()
    assert set(text.allowed()) == {255}
    assert time.monotonic() - began_at < 0.2


def test_a_process_that_stands_still_makes_a_step_wait_once_not_once_a_row(follower: TextFollower) -> None:
    texts = [follower.open(WORD, [], [END]) for _ in range(8)]
    turn_until(follower, lambda: all(text.has_arrived for text in texts))
    os.kill(follower.pid, signal.SIGSTOP)
    try:
        for text in texts:
            text.advance([ord("a")])
        begun_at = time.monotonic()
        assert [text.allowed() for text in texts] == [b""] * len(texts)
        assert time.monotonic() - begun_at < 3 * PATIENCE_OF_A_STEP_S
        assert all(text.was_missed for text in texts)
    finally:
        os.kill(follower.pid, signal.SIGCONT)
    turn_until(follower, lambda: all(text.has_arrived for text in texts))
    texts[0].advance([ord("4")])
    assert texts[0].allowed()


def test_a_process_is_not_taken_for_hung_because_this_one_stood_still(
    follower: TextFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = follower.open(WORD, [], [END])
    turn_until(follower, lambda: text.has_arrived)
    pid = follower.pid
    os.kill(pid, signal.SIGSTOP)
    text.advance([ord("a")])
    follower.flush()
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1000)
    follower.turn()
    assert follower.pid == pid
    os.kill(pid, signal.SIGCONT)
    turn_until(follower, lambda: text.has_arrived)
    assert follower.pid == pid
    text.close()


def test_texts_are_given_up_where_no_process_can_be_started(
    follower: TextFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, waits_later = (follower.open(WORD, [], [END]) for _ in range(2))
    turn_until(follower, lambda: waiting.has_arrived and waits_later.has_arrived)
    waiting.mask = None

    def full(*args: object) -> None:
        raise OSError("no room for a process")

    monkeypatch.setattr("octavo.grammar.followed_text.GrammarProcess", full)
    os.kill(follower.pid, signal.SIGKILL)
    turn_until(follower, lambda: follower.is_gone)
    assert waiting.error and waiting.has_arrived
    assert not waits_later.error
    waits_later.advance([ord("a")])
    assert waits_later.error and waits_later.has_arrived
