"""Trials of grammars: the short ones first, within limits, and what comes of a process that dies or never starts."""

from __future__ import annotations

import os
import signal
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


def test_a_grammar_with_which_two_processes_run_out_of_memory_is_refused_and_the_next_one_tried(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "MOST_MEMORY_BYTES", 4 << 20)
    tried = start()
    pids: list[int] = []
    monkeypatch.setattr(tried, "_blame", lambda *given, blame=tried._blame: (pids.append(tried.pid), blame(*given)))
    assert error_of(tried, LARGE) == "one that takes less than 30 s and 4 MiB to compile"
    assert len(set(pids)) == 2
    assert error_of(tried, SMALL) == ""


def test_a_grammar_that_takes_too_long_is_refused_for_a_while(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = start()
    assert error_of(tried, SMALL) == ""
    monkeypatch.setattr(trials, "LONGEST_TRIAL_S", 1e-3)
    assert error_of(tried, LARGE) == "one that takes less than 0.001 s to compile"
    monkeypatch.setattr(trials, "LONGEST_TRIAL_S", LONGEST_TRIAL_S)
    assert "to compile" in error_of(tried, LARGE), "not tried again at once"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61.0)
    assert tried.error_of(LARGE) is None


def test_the_limit_of_time_holds_where_the_engine_does_not_hear_its_signal(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LONGEST_TRIAL_S", 1e-3)
    disposition = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPROF})
    try:
        tried = start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGPROF, disposition)
    assert error_of(tried, LARGE) == "one that takes less than 0.001 s to compile"


def test_the_short_ones_go_first(start: Callable[[], Trials]) -> None:
    tried = start()
    assert tried.error_of(LARGE) is None
    assert error_of(tried, SMALL) == ""
    assert LARGE not in tried._verdicts
    assert error_of(tried, LARGE) == ""


def begun(tried: Trials, asked: StructuredOutputs) -> int:
    """A trial that does not get on; the process."""
    assert error_of(tried, WRONG)
    os.kill(tried.pid, signal.SIGSTOP)
    while tried._running is None:
        assert tried.error_of(asked) is None
        tried.turn()
    return tried.pid


def test_a_grammar_is_not_refused_for_a_process_that_dies_once(start: Callable[[], Trials]) -> None:
    tried = start()
    first = begun(tried, SMALL)
    os.kill(first, signal.SIGKILL)
    assert error_of(tried, SMALL) == ""
    assert tried.pid != first


def test_a_trial_withdrawn_while_it_runs_is_not_begun_anew(start: Callable[[], Trials]) -> None:
    tried = start()
    first = begun(tried, SMALL)
    tried.withdraw(SMALL)
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while tried.pid == first:
        assert time.monotonic() < deadline
        tried.turn(0.01)
    assert tried._running is None and not tried._queue and not tried._suspects
    assert error_of(tried, SMALL) == "", "whoever asks again has it tried"


def test_time_in_which_a_process_was_not_let_run_does_not_count(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = start()
    first = begun(tried, SMALL)
    real = time.monotonic
    for num_seconds in (1, 2, 3, 1000):
        monkeypatch.setattr(time, "monotonic", lambda ahead=num_seconds: real() + ahead)
        tried.turn()
    os.kill(first, signal.SIGCONT)
    assert error_of(tried, SMALL) == ""
    assert tried.pid == first


def test_a_process_that_stands_still_is_replaced(start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = start()
    first = begun(tried, SMALL)
    monkeypatch.setattr(tried, "_running", (SMALL, 0.0))  # until when it may be silent, on the process's clock
    assert error_of(tried, SMALL) == ""
    assert tried.pid != first


@pytest.mark.parametrize(("name", "value"), [("_MODULE", "octavo.no_such_module"), ("LONGEST_START_S", 0.0)])
def test_a_process_that_never_comes_up_refuses_everything(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(process, name, value)
    assert error_of(start(), SMALL) == process.CANNOT_START
