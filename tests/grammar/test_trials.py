"""Trials of grammars: one after the other, within their limits, and what comes of a process that does not start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from grammar.byte_vocabulary import BYTES

from octavo.grammar import process, trials
from octavo.grammar.trials import LONGEST_TRIAL_S, Trials
from octavo.structured_outputs import StructuredOutputs

PATIENCE_S = 20.0
LARGE = StructuredOutputs("grammar", 'start: %regex {"substring_chars": "' + "abcdefghij" * 3000 + '"}')
SMALL = StructuredOutputs("regex", "a{3}")
WRONG = StructuredOutputs("regex", "(")


@pytest.fixture
def start() -> Iterator[Callable[[], Trials]]:
    made: list[Trials] = []

    def make() -> Trials:
        made.append(Trials(BYTES))
        return made[-1]

    yield make
    for each in made:
        each.close()


def error_of(tried: Trials, asked: StructuredOutputs) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while (error := tried.error_of(asked)) is None:
        assert time.monotonic() < deadline
        tried.turn(0.01)
    return error


def test_a_verdict_is_kept_by_what_the_grammar_says(start: Callable[[], Trials]) -> None:
    tried = start()
    for asked in (SMALL, WRONG):
        error = error_of(tried, asked)
        assert bool(error) == (asked is WRONG)
        assert tried.error_of(StructuredOutputs(asked.kind, asked.text, "other")) == error


def test_nobody_waits_behind_a_trial_that_was_withdrawn(start: Callable[[], Trials]) -> None:
    tried = start()
    assert tried.error_of(LARGE) is None
    tried.withdraw(LARGE)
    assert error_of(tried, SMALL) == ""
    assert not tried._verdicts.keys() - {SMALL}


def test_a_grammar_that_takes_too_much_memory_is_refused_and_the_next_one_tried(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "MOST_MEMORY_BYTES", 4 << 20)
    tried = start()
    first = tried.pid
    assert error_of(tried, LARGE) == "one that takes less than 4 MiB to compile"
    assert tried.pid != first
    assert error_of(tried, SMALL) == ""


def test_a_grammar_that_takes_too_long_is_refused_for_a_while(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = start()
    assert error_of(tried, SMALL) == ""
    monkeypatch.setattr(trials, "LONGEST_TRIAL_S", 0.0)
    assert "to compile" in error_of(tried, LARGE)
    monkeypatch.setattr(trials, "LONGEST_TRIAL_S", LONGEST_TRIAL_S)
    assert "to compile" in error_of(tried, LARGE), "not tried again at once"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61.0)
    assert tried.error_of(LARGE) is None


def test_a_process_that_never_comes_up_refuses_everything(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_MODULE", "octavo.no_such_module")
    assert error_of(start(), SMALL) == process.CANNOT_START
