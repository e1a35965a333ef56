"""How an engine in an environment of its own speaks with the benchmark: JSON lines, on the standard library alone.

Knows no engine. An adapter beside this file opens one and calls `serve`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

# Short, and a part of no workload's prompts: no prefix cache has any use of it later.
FIRST_PROMPT = tuple(range(101, 117))
WARM_PROMPT = tuple(range(201, 265))
# Stands for a token that came, but whose id the engine does not tell.
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its prompt and how many tokens it makes, greedily, whatever they are."""

    prompt_token_ids: list[int]
    num_output_tokens: int


@dataclass(slots=True)
class Outcome:
    """What came of requests submitted at once. Times in seconds; `times` has one entry a token and request, since the
    submission, and stays empty where the engine gives all tokens in the end.
    """

    wall_s: float
    token_ids: list[list[int]]
    times: list[list[float]] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """As the benchmark reads it: the first tokens' times, and the gaps between the tokens of a request."""
        return {
            "wall_s": self.wall_s,
            "token_ids": self.token_ids,
            "ttft_s": [when[0] for when in self.times],
            "itl_s": [later - earlier for when in self.times for earlier, later in pairwise(when)],
        }


class Adapter(Protocol):
    """An engine, loaded. `prepare` comes before each workload and is not timed."""

    version: str

    def prepare(self, items: Sequence[Item]) -> None: ...
    def run(self, items: Sequence[Item]) -> Outcome: ...
    def close(self) -> None: ...


class Collector:
    """The tokens of requests submitted at once, as they come. Owns the clock."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._wanted = [item.num_output_tokens for item in items]
        self._token_ids: list[list[int]] = [[] for _ in items]
        self._times: list[list[float]] = [[] for _ in items]
        self._start = time.perf_counter()

    def add(self, index: int, token_ids: Sequence[int]) -> None:
        """New tokens of a request."""
        self._token_ids[index] += token_ids
        self._times[index] += [time.perf_counter() - self._start] * len(token_ids)

    def outcome(self) -> Outcome:
        """To be asked for at once when the last token has come. Raises ValueError when a request has another length."""
        wall_s = time.perf_counter() - self._start
        made = [len(token_ids) for token_ids in self._token_ids]
        if made != self._wanted:
            raise ValueError(f"asked for {self._wanted} tokens, {made} came")
        return Outcome(wall_s, self._token_ids, self._times)


def serve(open_adapter: Callable[[dict[str, Any]], Adapter]) -> None:
    """Opens the engine with the settings on the command line, then answers a job a line until stdin ends.

    The first answer says when (`time.monotonic`, the same clock for all processes) the first token had come.
    """
    # Answers keep the real stdout to themselves; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    adapter = open_adapter(json.loads(sys.argv[1]))
    try:
        first = [Item(list(FIRST_PROMPT), 1)]
        adapter.prepare(first)
        adapter.run(first)
        print(json.dumps({"version": adapter.version, "first_token_at": time.monotonic()}), file=answers)
        for line in sys.stdin:
            items = [Item(*pair) for pair in json.loads(line)["items"]]
            adapter.prepare(items)
            adapter.run([Item(list(WARM_PROMPT), 8)] * min(4, len(items)))
            print(json.dumps("prepared"), file=answers)
            if not sys.stdin.readline():
                break
            print(json.dumps(adapter.run(items).figures()), file=answers)
    finally:
        adapter.close()
