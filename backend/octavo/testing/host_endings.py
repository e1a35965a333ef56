"""Checks of how things end: an engine process that dies, and a server that is told to stop.

Knows no protocol.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from octavo.testing.host import Ask, ErrorKind, Host, HostError, Offline
from octavo.testing.host_requests import (
    offline_answers,
    seeded,
    streamed,
    streams_begun,
    streams_in_flight,
    wait_until,
    wait_until_idle,
)

PROMPT = "Once upon a time"
NUM_TOKENS = 100
# Metrics may be a quarter of a second old: so long must the queue be seen by whoever reads them.
NUM_TOKENS_OF_A_DRAIN = 180


def streams_survive_the_engine(host: Host, offline: Offline) -> None:
    """The engine process is killed in the middle: the streams go on in a new one as if nothing had been."""
    asks = [seeded(PROMPT, seed, NUM_TOKENS) for seed in range(host.facts.max_num_seqs)]
    wanted = offline_answers(offline, asks)
    wait_until_idle(host)
    with watched(host) as ended, streams_begun(host, asks) as answers:
        killed = host.engine_pids()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        assert [each.result() for each in answers] == wanted
        assert ended(), "the engine process cannot be killed"
    assert not set(host.engine_pids()) & set(killed)
    wait_until_idle(host)


def a_server_that_stops_finishes_what_it_has_begun(host: Host, offline: Offline) -> None:
    """Running or queued, every request is answered; new ones are refused; nothing is left. The last check of a host."""
    facts = host.facts
    # One place of the queue stays free, so that nobody is refused for its being full.
    asks = [seeded(PROMPT, seed, NUM_TOKENS_OF_A_DRAIN) for seed in range(facts.max_num_seqs + facts.max_waiting - 1)]
    wanted = offline_answers(offline, asks)
    wait_until_idle(host)
    with watched(host) as ended:
        with streams_in_flight(host, asks) as answers:
            num_waiting = facts.max_waiting - 1
            wait_until(lambda: host.load().num_waiting == num_waiting, host, "all requests run or wait")
            host.terminate()
            wait_until(lambda: _refuses(host), host, "new requests are refused")
            found = [each.result() for each in answers]
            assert found == wanted, f"the streams brought {found}, not {wanted}"
        code = host.wait()
        assert code == 0, f"the server's exit code is {code}"
        assert ended(), "the engine process has outlived the server"


def _refuses(host: Host) -> bool:
    """Whether a new request is. Until then it is answered."""
    try:
        streamed(host, Ask(PROMPT, {"max_tokens": 1, "seed": 0}))
    except HostError as error:
        if error.kind in (ErrorKind.UNAVAILABLE, None):
            return True
        raise
    return False


@contextmanager
def watched(host: Host) -> Iterator[Callable[[], bool]]:
    """What it gives tells whether the engine processes that there are now have ended; it waits for them.

    By descriptors, so that a reused process id cannot fool it.
    """
    with ExitStack() as opened:
        descriptors = [os.pidfd_open(pid) for pid in host.engine_pids()]
        for descriptor in descriptors:
            opened.callback(os.close, descriptor)
        assert descriptors, "the host has no engine process"
        yield lambda: all(_is_readable(descriptor, host.facts.patience_s) for descriptor in descriptors)


def _is_readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
