"""Trials of grammars: what they may take, what they leave to others, and what comes of processes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grammar.byte_vocabulary import BYTES

from octavo.grammar import process, trials
from octavo.grammar.messages import Limits
from octavo.grammar.trials import LIMITS, Trials
from octavo.structured_outputs import StructuredOutputs

PATIENCE_S = 20.0
LARGE = StructuredOutputs("grammar", 'start: %regex {"substring_chars": "' + "abcdefghij" * 3000 + '"}')
SMALL = StructuredOutputs("regex", "a{3}")
WRONG = StructuredOutputs("regex", "(")


def of_states(prime: int) -> StructuredOutputs:
    """A grammar of as many states as the number that a value must be a multiple of."""
    return StructuredOutputs("json", f'{{"type": "integer", "multipleOf": {prime}}}')


ENDLESS, ENDLESS_TOO, *MORE_ENDLESS = map(of_states, (9999991, 9999973, 9999971, 9999943, 9999937, 9999931))


_WORK = "what other work leaves of this server's processors"
LATER = f"one that can be compiled in {_WORK}: a smaller one, or this one 5 s later"


@pytest.fixture
def start() -> Iterator[Callable[[], Trials]]:
    made: list[Trials] = []

    def make() -> Trials:
        made.append(Trials(BYTES))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets limits of the trials that begin; what is not named is not limited."""

    def set_limits(cpu_s: float = 100.0, awake_s: float = 100.0, memory_bytes: int = 1 << 30) -> None:
        monkeypatch.setattr(trials, "LIMITS", Limits(cpu_s, awake_s, memory_bytes))

    return set_limits


def error_of(tried: Trials, asked: StructuredOutputs) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while (error := tried.error_of(asked)) is None:
        assert time.monotonic() < deadline
        tried.turn(0.01)
    return error


def turn_until(tried: Trials, is_reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_reached():
        assert time.monotonic() < deadline
        tried.turn(0.01)


def running(tried: Trials) -> list[int]:
    """The processes for trials, those that have ended and are not reaped left out."""
    children = Path(f"/proc/{tried.pid}/task/{tried.pid}/children").read_text().split()
    return [int(pid) for pid in children if not has_ended(int(pid))]


def state_of(pid: int) -> str:
    """A process's state as one letter; source: proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def cpu_s_of(pid: int) -> float:
    """Source: clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def has_ended(pid: int) -> bool:
    return state_of(pid) in "ZX"


def begun(tried: Trials, asked: StructuredOutputs) -> int:
    """The process of a trial that has just begun, where there was none."""
    turn_until(tried, lambda: not running(tried))
    assert tried.error_of(asked) is None
    turn_until(tried, lambda: running(tried))
    (pid,) = running(tried)
    return pid


def test_a_verdict_is_kept_by_what_the_grammar_says(start: Callable[[], Trials]) -> None:
    tried = start()
    for asked in (SMALL, WRONG):
        error = error_of(tried, asked)
        assert bool(error) == (asked is WRONG)
        assert tried.error_of(StructuredOutputs(asked.kind, asked.text, "other")) == error


def test_nobody_waits_behind_long_trials(start: Callable[[], Trials], limit: Callable[..., None]) -> None:
    limit()
    tried = start()
    assert tried.error_of(ENDLESS) is None
    assert error_of(tried, SMALL) == ""
    assert tried.error_of(ENDLESS_TOO) is None
    turn_until(tried, lambda: len(running(tried)) == 2)
    assert tried.error_of(LARGE) is None and tried.error_of(WRONG) is None
    turn_until(tried, lambda: {LARGE, WRONG} <= tried._verdicts.keys())
    assert list(tried._verdicts).index(WRONG) < list(tried._verdicts).index(LARGE), "the short ones go first"
    assert LATER in (tried.error_of(ENDLESS), tried.error_of(ENDLESS_TOO))


def test_a_grammar_that_takes_too_long_is_refused_for_a_while(
    start: Callable[[], Trials], limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(cpu_s=0.05)
    tried = start()
    assert error_of(tried, ENDLESS) == "one that takes less than 0.05 s to compile"
    limit()
    assert "to compile" in error_of(tried, ENDLESS), "not tried again at once"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61.0)
    assert tried.error_of(ENDLESS) is None


def test_who_asks_has_an_answer_in_time_where_others_leave_too_little_of_the_processors(
    start: Callable[[], Trials], limit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(awake_s=0.2)
    tried = start()
    assert error_of(tried, ENDLESS) == LATER
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 6.0)
    assert tried.error_of(ENDLESS) is None, "it may be asked for again soon"


def test_who_has_no_turn_in_time_has_an_answer_all_the_same(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit(awake_s=0.2)
    tried = start()
    endless = [ENDLESS, ENDLESS_TOO, *MORE_ENDLESS]
    pids = set[int]()
    for each in endless:
        assert tried.error_of(each) is None
    turn_until(tried, lambda: pids.update(running(tried)) or not tried._trials)
    assert [tried.error_of(each) for each in endless] == [LATER] * len(endless)
    assert len(pids) <= 4, "not all had a turn"


def test_a_grammar_with_which_two_processes_run_out_of_memory_is_refused(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit(memory_bytes=4 << 20)
    tried = start()
    assert error_of(tried, LARGE) == "one that takes less than 4 MiB to compile; the process that did it died"
    assert error_of(tried, SMALL) == ""


def test_many_ask_at_once_and_small_trials_share_processes(start: Callable[[], Trials]) -> None:
    tried = start()
    asked = [StructuredOutputs("regex", f"a{{{number}}}") for number in range(1, 50)]
    pids = set[int]()
    for each in asked:
        assert tried.error_of(each) is None
    turn_until(tried, lambda: pids.update(running(tried)) or not tried._trials)
    assert all(tried.error_of(each) == "" for each in asked)
    assert len(pids) <= 2


def test_large_grammars_that_come_at_once_are_not_taken_for_hostile_ones(start: Callable[[], Trials]) -> None:
    tried = start()
    # Some 30 ms each.
    asked = [of_states(prime) for prime in (13001, 13003, 13007, 13009, 13033, 13037)]
    for each in asked:
        assert tried.error_of(each) is None
    turn_until(tried, lambda: not tried._trials)
    assert [tried.error_of(each) for each in asked] == [""] * len(asked)


def test_a_turn_comes_though_more_long_trials_wait_than_run(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit()
    tried = start()
    endless = [ENDLESS, ENDLESS_TOO, *MORE_ENDLESS[:2]]
    for each in endless:
        assert tried.error_of(each) is None
    turn_until(tried, lambda: len(running(tried)) == 2)
    assert error_of(tried, SMALL) == ""
    assert [tried.error_of(each) for each in endless[:2]] == [LATER] * 2


def test_a_long_trial_steps_back_and_those_that_end_well_do_not(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit()
    tried = start()
    for count in range(40):
        letters = "abcdefghij" * 2000 + "k" * count
        assert error_of(tried, StructuredOutputs("grammar", f'start: %regex {{"substring_chars": "{letters}"}}')) == ""
        assert {os.sched_getscheduler(pid) for pid in running(tried)} <= {os.SCHED_OTHER}
    pids = running(tried)
    # Some 0.4 s, which is more than the credit.
    assert error_of(tried, of_states(90_001)) == ""
    assert error_of(tried, SMALL) == ""
    turn_until(tried, lambda: all(map(has_ended, pids)))
    assert [os.sched_getscheduler(pid) for pid in running(tried)] == [os.SCHED_OTHER]
    assert os.sched_getscheduler(tried.pid) == os.SCHED_OTHER


def test_nothing_is_left_of_trials_that_have_ended(start: Callable[[], Trials], limit: Callable[..., None]) -> None:
    limit(cpu_s=0.01)
    ignored = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # which those that are started inherit
    try:
        tried = start()
    finally:
        signal.signal(signal.SIGCHLD, ignored)
    assert error_of(tried, SMALL) == ""
    first = tried.pid
    num_files = len(os.listdir(f"/proc/{first}/fd"))
    for asked in MORE_ENDLESS:
        assert error_of(tried, asked)
    children = Path(f"/proc/{first}/task/{first}/children")
    turn_until(tried, lambda: not children.read_text())
    assert tried.pid == first and len(os.listdir(f"/proc/{first}/fd")) < num_files


def test_a_long_trial_pauses_where_others_compute_and_goes_on(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit()
    tried = start()
    trial = begun(tried, ENDLESS)
    processor = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(trial, processor)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            os.sched_setaffinity(busy.pid, processor)
            turn_until(tried, lambda: state_of(trial) == "T")
        finally:
            busy.kill()
    os.sched_setaffinity(trial, os.sched_getaffinity(0))
    had_s = cpu_s_of(trial)
    turn_until(tried, lambda: cpu_s_of(trial) > had_s + 0.05)


def test_who_forks_has_one_thread(start: Callable[[], Trials]) -> None:
    tried = start()
    assert error_of(tried, SMALL) == ""
    assert len(os.listdir(f"/proc/{tried.pid}/task")) == 1


def test_a_grammar_is_refused_when_a_second_process_dies_of_it(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit()
    tried = start()
    first = begun(tried, ENDLESS)
    os.kill(first, signal.SIGKILL)
    turn_until(tried, lambda: running(tried) not in ([], [first]))
    assert tried.error_of(ENDLESS) is None
    os.kill(*running(tried), signal.SIGKILL)
    assert error_of(tried, ENDLESS) == "one that takes less than 1024 MiB to compile; the process that did it died"


def test_a_trial_that_is_withdrawn_ends_and_whoever_asks_again_has_it_tried(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit()
    tried = start()
    pid = begun(tried, ENDLESS)
    tried.withdraw(ENDLESS)
    turn_until(tried, lambda: has_ended(pid))
    assert begun(tried, ENDLESS) != pid and not tried._verdicts


def test_trials_go_on_in_another_process_and_none_is_left_behind(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit()
    tried = start()
    trial, first = begun(tried, ENDLESS), tried.pid
    os.kill(first, signal.SIGKILL)
    assert error_of(tried, LARGE) == "" and tried.pid != first
    turn_until(tried, lambda: has_ended(trial))
    assert tried.error_of(ENDLESS) is None, "tried again"


def test_a_grammar_is_refused_when_the_process_that_tries_them_dies_twice(
    start: Callable[[], Trials], limit: Callable[..., None]
) -> None:
    limit()
    tried = start()
    for _ in range(2):
        pid = tried.pid
        turn_until(tried, lambda: tried._process.is_up)
        assert tried.error_of(ENDLESS) is None
        os.kill(pid, signal.SIGKILL)
        turn_until(tried, lambda pid=pid: tried.pid != pid)
    assert tried.error_of(ENDLESS) == LATER
    assert error_of(tried, SMALL) == ""


def test_time_in_which_a_process_was_not_let_run_does_not_count(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = start()
    assert error_of(tried, WRONG)
    first = tried.pid
    os.kill(first, signal.SIGSTOP)
    assert tried.error_of(SMALL) is None
    real = time.monotonic
    for num_seconds in (1, 2, 3, 1000):
        monkeypatch.setattr(time, "monotonic", lambda ahead=num_seconds: real() + ahead)
        tried.turn()
    os.kill(first, signal.SIGCONT)
    assert error_of(tried, SMALL) == ""
    assert tried.pid == first


def test_a_process_that_stands_still_is_replaced(start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = start()
    assert error_of(tried, WRONG)
    first = tried.pid
    os.kill(first, signal.SIGSTOP)
    assert tried.error_of(SMALL) is None
    monkeypatch.setattr(trials, "LONGEST_SILENCE_S", 0.0)
    turn_until(tried, lambda: tried.pid != first)
    monkeypatch.undo()
    assert error_of(tried, SMALL) == ""


@pytest.mark.parametrize(("name", "value"), [("_MODULE", "octavo.no_such_module"), ("LONGEST_START_S", 0.0)])
def test_a_process_that_never_comes_up_refuses_everything(
    start: Callable[[], Trials], monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(process, name, value)
    assert error_of(start(), SMALL) == process.CANNOT_START


def test_the_limits_answer_within_two_seconds() -> None:
    assert LIMITS.cpu_s <= LIMITS.awake_s < 2.0
