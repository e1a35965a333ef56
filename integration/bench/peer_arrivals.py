"""The online workloads: when each request arrives, the same for every server, and streams that are sent at those times.

W5 is a Poisson process; W6 is the same with a long prompt at fixed intervals, answered as long as the others. Knows
no server.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import pycurl
from streams import Stream, end

from octavo.workloads import FIRST_TOKEN_ID, VOCAB_SIZE, Item

RATE_PER_S = 2.0
DURATION_S = 60.0
LONG_EVERY_S = 5.0
SHORT = (128, 64)
LONG = (2048, 64)
# What --quick makes of both.
QUICK_DURATION_S = 6.0
_SELECT_S = 1.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it is sent, in seconds from the beginning."""

    at_s: float
    item: Item
    is_long: bool = False


def arrivals(name: str, duration_s: float = DURATION_S) -> list[Arrival]:
    """W5 or W6. The short requests come at the same times in both, with other prompts: one server may serve both."""
    rng = random.Random(5)
    found, at_s = [], rng.expovariate(RATE_PER_S)
    while at_s < duration_s:
        found.append(Arrival(at_s, _item(rng, *SHORT)))
        at_s += rng.expovariate(RATE_PER_S)
    if name == "W5":
        return found
    rng = random.Random(6)
    found = [Arrival(arrival.at_s, _item(rng, *SHORT)) for arrival in found]
    num_long = int(duration_s / LONG_EVERY_S)
    found += [Arrival(i * LONG_EVERY_S, _item(rng, *LONG), is_long=True) for i in range(num_long)]
    return sorted(found, key=lambda arrival: arrival.at_s)


def _item(rng: random.Random, num_prompt_tokens: int, num_output_tokens: int) -> Item:
    token_ids = [rng.randrange(FIRST_TOKEN_ID, VOCAB_SIZE) for _ in range(num_prompt_tokens)]
    return Item(token_ids, num_output_tokens)


def _handle(stream: Stream) -> pycurl.Curl:
    handle = stream.handle()
    if not stream.http2:
        # Servers close what has been idle for a while; a request may not be lost to a connection that is closing.
        handle.setopt(pycurl.FRESH_CONNECT, 1)
    return handle


def run_at(streams: Sequence[Stream], times: Sequence[float]) -> float:
    """Sends each stream at its time (ascending, seconds from now) and reads all to their ends; when it began.

    Raises StreamFailed when one fails in HTTP or below.
    """
    multi = pycurl.CurlMulti()
    handles = [_handle(stream) for stream in streams]
    num_sent = num_running = 0
    start = perf_counter()
    while num_sent < len(handles) or num_running:
        while num_sent < len(handles) and perf_counter() - start >= times[num_sent]:
            multi.add_handle(handles[num_sent])
            num_sent += 1
        _, num_running = multi.perform()
        next_s = times[num_sent] - (perf_counter() - start) if num_sent < len(handles) else _SELECT_S
        if num_running:
            multi.select(min(max(next_s, 0.0), _SELECT_S))
        elif num_sent < len(handles):
            time.sleep(max(next_s, 0.0))
    end(multi, handles)
    return start
