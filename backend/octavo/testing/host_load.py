"""Checks of a host under load: a full queue, time limits, and clients that leave.

Knows no protocol.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace

from octavo.testing.host import ErrorKind, Host, Offline
from octavo.testing.host_requests import (
    ENDLESS,
    offline_answers,
    seeded,
    streamed,
    streams_begun,
    streams_in_flight,
    told,
    wait_until,
    wait_until_idle,
)

MATE = "The capital of France is"
NUM_TOKENS = 100
# Metrics may be a quarter of a second old: it runs for longer.
NUM_TOKENS_OF_A_LONG_ONE = 300
DEADLINE_S = 0.4


def a_client_that_leaves_frees_everything(host: Host, offline: Offline) -> None:
    """In the middle of its stream, beside others whose answers stay what they were."""
    mates = [seeded(MATE, seed, NUM_TOKENS) for seed in range(2)]
    wanted = offline_answers(offline, mates)
    wait_until_idle(host)
    with streams_begun(host, mates) as answers:
        with host.stream(ENDLESS) as pieces:
            next(pieces)
            wait_until(lambda: host.load().num_running > 0, host, "the metrics show who runs")
        assert [each.result() for each in answers] == wanted
    wait_until_idle(host)


def a_client_that_leaves_the_queue_frees_its_place(host: Host, offline: Offline) -> None:
    """Before its request has run, and while others run on."""
    mate = seeded(MATE, 1, NUM_TOKENS_OF_A_LONG_ONE)
    wanted = offline_answers(offline, [mate])
    wait_until_idle(host)
    with ExitStack() as running, streams_begun(host, [mate]) as answers:
        _fill(host, running, host.facts.max_num_seqs - 1)
        with host.stream(ENDLESS):
            wait_until(lambda: host.load().num_waiting == 1, host, "one request waits")
        wait_until(lambda: host.load().num_waiting == 0, host, "its place in the queue is free")
        mate_had_ended = answers[0].done()
        running.close()
        assert [each.result() for each in answers] == wanted
    assert not mate_had_ended, "its place in the queue was free only when another request had ended"
    wait_until_idle(host)


def one_request_too_many_is_refused(host: Host, offline: Offline) -> None:
    """When all places and the whole queue are taken; those who wait are answered."""
    limit = host.facts.max_waiting
    waiting = [seeded(MATE, seed, 4) for seed in range(limit)]
    wanted = offline_answers(offline, waiting)
    wait_until_idle(host)
    with ExitStack() as running:
        _fill(host, running, host.facts.max_num_seqs)
        with streams_in_flight(host, waiting) as answers:
            wait_until(lambda: host.load().num_waiting == limit, host, f"{limit} requests wait")
            # Where it is not refused, it must not wait for ever.
            more = replace(ENDLESS, deadline_s=host.facts.patience_s)
            refusals = [told(host.generate, more), told(streamed, host, more)]
            running.close()
            assert [each.result() for each in answers] == wanted
    for error, kinds in zip(refusals, ((ErrorKind.OVERLOADED,), (ErrorKind.OVERLOADED, None)), strict=True):
        assert error.kind in kinds, error
        sentence = f"Exceeds maximum queue size: {limit} requests are waiting, at most {limit} may; retry in "
        assert error.text.startswith(sentence), error
    wait_until_idle(host)


def a_time_limit_ends_a_request(host: Host, offline: Offline) -> None:
    """Whole or streamed, it ends as late, in an error that says so; a stream has brought text by then."""
    limited = replace(ENDLESS, deadline_s=DEADLINE_S)
    begun_at = time.monotonic()
    error = told(host.generate, limited)
    taken_s = time.monotonic() - begun_at
    assert (error.kind, error.text) == (ErrorKind.DEADLINE, "Request timeout expired"), error
    assert DEADLINE_S <= taken_s < host.facts.patience_s, f"after {taken_s} s"
    pieces: list[None] = []
    error = told(streamed, host, limited, lambda: pieces.append(None))
    assert error.kind in (ErrorKind.DEADLINE, None) and error.text == "Request timeout expired", error
    assert pieces, "the stream brought nothing before its end"
    wait_until_idle(host)


def _fill(host: Host, running: ExitStack, count: int) -> None:
    """Takes so many places to run, the last ones, until `running` is closed."""
    for _ in range(count):
        running.enter_context(host.stream(ENDLESS))
    wait_until(lambda: host.load().num_running == host.facts.max_num_seqs, host, "every place is taken")
