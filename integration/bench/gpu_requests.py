"""Requests of random token ids sent through an engine that is stepped here; when every token came out.

Greedy, to the length asked for. Knows no GPU and no other engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from random import Random
from time import perf_counter

import bare_octavo  # noqa: F401  before everything that imports octavo

from octavo.engine import Engine
from octavo.outputs import FinishReason
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams

_numbers = count()


@dataclass(frozen=True, slots=True)
class Item:
    """One request's tokens."""

    prompt_token_ids: list[int]
    num_output_tokens: int

    @property
    def lengths(self) -> tuple[int, int]:
        return len(self.prompt_token_ids), self.num_output_tokens


def items(lengths: Iterable[tuple[int, int]], vocab_size: int, seed: int) -> list[Item]:
    """Random prompts for (prompt, output) lengths; another seed shares no prefix with them."""
    rng = Random(seed)
    return [Item(rng.choices(range(vocab_size), k=prompt), output) for prompt, output in lengths]


@dataclass(slots=True)
class Run:
    """What came out of an engine. `times`: when each token did (perf_counter), by request. Owned by whoever steps."""

    engine: Engine
    times: dict[str, list[float]] = field(default_factory=dict)
    reasons: dict[str, FinishReason] = field(default_factory=dict)

    def add(self, item: Item) -> str:
        """Submits a request and returns its id."""
        request_id = f"bench-{next(_numbers)}"
        params = SamplingParams(temperature=0, max_tokens=item.num_output_tokens, ignore_eos=True)
        request = EngineRequest(request_id=request_id, prompt_token_ids=item.prompt_token_ids, params=params, seed=0)
        self.times[request_id] = []
        self.engine.add_request(request)
        return request_id

    def step(self) -> int:
        """One step of the engine; how many tokens it brought. Raises RuntimeError for a request that failed."""
        outputs = self.engine.step()
        now, num_tokens = perf_counter(), 0
        for output in outputs:
            num_tokens += len(output.token_ids)
            self.times[output.request_id] += [now] * len(output.token_ids)
            if output.finish_reason is not None:
                self.reasons[output.request_id] = output.finish_reason
            if output.finish_reason is FinishReason.ERROR:
                raise RuntimeError(f"{output.request_id}: {output.error}")
        return num_tokens

    def drain(self) -> None:
        """Steps until nothing is left."""
        while self.engine.has_work:
            self.step()

    def abort(self) -> None:
        """Ends what has not ended."""
        for request_id in self.times.keys() - self.reasons.keys():
            self.engine.abort(request_id)
        self.drain()

    @property
    def num_tokens(self) -> int:
        return sum(len(times) for times in self.times.values())

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Between tokens of the same request: when the later one came, and seconds."""
        return [(later, later - earlier) for times in self.times.values() for earlier, later in pairwise(times)]


def run_all(engine: Engine, wanted: Sequence[Item]) -> tuple[Run, float]:
    """All at once, to the end; seconds. Raises RuntimeError if not every token came."""
    begin = perf_counter()
    run = Run(engine)
    for item in wanted:
        run.add(item)
    run.drain()
    seconds = perf_counter() - begin
    expected = sum(item.num_output_tokens for item in wanted)
    if run.num_tokens != expected:
        raise RuntimeError(f"{run.num_tokens} tokens came out, {expected} were asked for")
    return run, seconds
