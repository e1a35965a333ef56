"""The conformance suite itself: a right host passes it, and each check finds hosts that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine.broken_hosts import (
    AnswersToEveryName,
    BrokenHost,
    CutsStreams,
    DependsOnBatchMates,
    EndsBadly,
    EndsOthersToo,
    EndsTwice,
    EndsWithoutAReason,
    FailsTogether,
    GoesOnAfterTheEnd,
    HidesErrorsOnStreams,
    IgnoresTheSeed,
    KeepsTheText,
    LosesStreamsWithTheEngine,
    LosesTheLastText,
    MiscountsTheStream,
    MiscountsTheWhole,
    OverlooksThatAClientLeft,
    SaysOtherwise,
    SaysOtherwiseOnStreams,
    TakesMoreThanItWillEnd,
    TakesWhatIsWrong,
    TellsAnotherKind,
)
from engine.in_process_host import InProcessHost

from octavo import LLM, AsyncEngine, EngineConfig
from octavo.testing import HOST_CHECKS, HostFacts, check_host
from octavo.testing.host_requests import wait_until_idle

FACTS = HostFacts(max_model_len=4000, max_num_seqs=4, max_waiting=3)
IMPATIENT = replace(FACTS, patience_s=2.0)

pytestmark = pytest.mark.slow


def start(model: Path) -> AsyncEngine:
    sizes = {name: getattr(FACTS, name) for name in ("max_model_len", "max_num_seqs", "max_waiting")}
    return AsyncEngine(EngineConfig(model=str(model), executor="octavo.testing:create_paced_executor", **sizes))


@pytest.fixture(scope="module")
def engine(long_model: Path) -> Iterator[AsyncEngine]:
    """For hosts that only say that they end."""
    engine = start(long_model)
    engine.wait_ready(60)
    yield engine
    engine.shutdown(drain_s=0)


@pytest.fixture(scope="module")
def offline(long_model: Path) -> LLM:
    return LLM(str(long_model), executor="octavo.testing:create_fake_executor", max_model_len=FACTS.max_model_len)


@pytest.fixture
def broken(request: pytest.FixtureRequest, engine: AsyncEngine) -> Iterator[BrokenHost]:
    host = request.param(engine, IMPATIENT)
    yield host
    host.cancel_all()
    wait_until_idle(InProcessHost(engine, FACTS))


CAUGHT: list[tuple[str, type[BrokenHost], str]] = [
    ("whole_answers_are_their_pieces", LosesTheLastText, "the stream brings"),
    ("whole_answers_are_their_pieces", EndsTwice, "a second finish reason"),
    ("whole_answers_are_their_pieces", EndsWithoutAReason, "without its finish reason"),
    ("whole_answers_are_their_pieces", GoesOnAfterTheEnd, "text after the finish reason"),
    ("whole_answers_are_their_pieces", MiscountsTheWhole, "not the answer"),
    ("whole_answers_are_their_pieces", MiscountsTheStream, "the stream brings"),
    ("a_stream_comes_in_pieces", KeepsTheText, "100 tokens in 1 pieces"),
    ("seeded_texts_are_always_the_same", IgnoresTheSeed, "asked alone"),
    ("seeded_texts_are_always_the_same", DependsOnBatchMates, "asked side by side"),
    ("bad_requests_are_told_what_is_wrong", SaysOtherwise, "it should be 'temperature: -1"),
    ("bad_requests_are_told_what_is_wrong", SaysOtherwiseOnStreams, "on a stream"),
    ("bad_requests_are_told_what_is_wrong", TakesWhatIsWrong, "no error, but"),
    ("bad_requests_are_told_what_is_wrong", TellsAnotherKind, "unavailable: temperature"),
    ("an_unknown_model_is_not_found", AnswersToEveryName, "no error, but"),
    ("a_bad_request_harms_nobody_else", FailsTogether, "cancelled"),
    ("a_client_that_leaves_frees_everything", OverlooksThatAClientLeft, "everything is free"),
    ("a_client_that_leaves_frees_everything", EndsOthersToo, "cancelled"),
    ("a_client_that_leaves_the_queue_frees_its_place", OverlooksThatAClientLeft, "its place in the queue"),
    ("a_client_that_leaves_the_queue_frees_its_place", EndsOthersToo, "cancelled"),
    ("one_request_too_many_is_refused", TellsAnotherKind, "unavailable: Exceeds"),
    ("one_request_too_many_is_refused", SaysOtherwise, "Bad request"),
    ("one_request_too_many_is_refused", FailsTogether, "cancelled"),
    ("a_time_limit_ends_a_request", TellsAnotherKind, "unavailable: Request timeout"),
    ("a_time_limit_ends_a_request", HidesErrorsOnStreams, "no error, but"),
    ("streams_survive_the_engine", LosesStreamsWithTheEngine, "without its finish reason"),
    ("a_server_that_stops_finishes_what_it_has_begun", BrokenHost, "the engine process has outlived the server"),
    ("a_server_that_stops_finishes_what_it_has_begun", EndsBadly, "the server's exit code is 1"),
    ("a_server_that_stops_finishes_what_it_has_begun", CutsStreams, "without its finish reason"),
    ("a_server_that_stops_finishes_what_it_has_begun", TakesMoreThanItWillEnd, "new requests are refused"),
]


@pytest.mark.parametrize(("check", "broken", "why"), CAUGHT, indirect=["broken"])
def test_a_check_finds_what_is_wrong(check: str, broken: BrokenHost, why: str, offline: LLM) -> None:
    with pytest.raises(AssertionError) as caught:
        check_host(broken, offline, [check])
    assert str(caught.value).startswith(check) and why in str(caught.value)


def test_every_check_finds_something() -> None:
    assert {check for check, _, _ in CAUGHT} == HOST_CHECKS.keys()


def test_an_engine_without_a_server_passes(long_model: Path, offline: LLM) -> None:
    engine = start(long_model)
    try:
        engine.wait_ready(60)
        check_host(InProcessHost(engine, FACTS), offline)
    finally:
        engine.shutdown(drain_s=0)
