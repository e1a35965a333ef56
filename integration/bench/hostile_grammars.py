"""What streams lose while somebody sends hostile grammars, one after the other: tokens/s with and without, in turns.

    python integration/bench/hostile_grammars.py [--num-streams 16] [--num-tokens 256] [--num-clients 1] [--rounds 5]

Each client sends the next one when the last one is refused: the worst that one who waits for answers can do. Two kinds:
short ones are refused by the compiler after hundredths of a second, long ones would take many seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

from octavo import LLM, SamplingParams
from octavo.outputs import FinishReason
from octavo.request import EngineRequest


def short(number: int) -> dict[str, object]:
    """Intersections that explode."""
    terms = " & ".join(f"/.*{chr(97 + i)}.*{i}{{{300 + number}}}/" for i in range(26))
    return {"grammar": f"start: A\nA: {terms}"}


def long(number: int) -> dict[str, object]:
    """As many states as the number that a value must be a multiple of, which neither 2 nor 5 divides."""
    return {"json": json.dumps({"type": "integer", "multipleOf": 900_001 + 10 * number})}


KINDS: dict[str, Callable[[int], dict[str, object]]] = {"short": short, "long": long}


class Turns:
    """Runs batches of plain streams on one engine, with or without attackers."""

    def __init__(self, llm: LLM, num_streams: int, num_tokens: int) -> None:
        self._engine = llm.engine
        self._engine.gate.use(llm.tokenizer.vocabulary)
        self._num_streams, self._num_tokens = num_streams, num_tokens
        self._numbers = itertools.count()
        self.refused_after_s: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def tokens_per_second(self, kind: str = "", num_clients: int = 0) -> float:
        """Of one batch, from its first step to its last, beside so many clients that send grammars of a kind."""
        params = SamplingParams(temperature=0, max_tokens=self._num_tokens, ignore_eos=True)
        batch = next(self._numbers)
        for i in range(self._num_streams):
            prompt = [100 + (7 * i + j) % 1000 for j in range(32)]
            self._engine.add_request(
                EngineRequest(request_id=f"{batch}-{i}", prompt_token_ids=prompt, params=params, seed=0)
            )
        num_live, sent_at, began_at = self._num_streams, dict[str, float](), time.perf_counter()
        while num_live:
            while len(sent_at) < num_clients:
                sent_at[self._attack(kind)] = time.perf_counter()
            for output in self._engine.step():
                if output.request_id in sent_at:
                    assert output.finish_reason is FinishReason.REJECTED, "a hostile grammar was taken"
                    self.refused_after_s[kind].append(time.perf_counter() - sent_at.pop(output.request_id))
                elif output.finish_reason is not None:
                    num_live -= 1
        took_s = time.perf_counter() - began_at
        for attack in sent_at:
            self._engine.abort(attack)
        while self._engine.has_work:
            self._engine.step()
        return self._num_streams * self._num_tokens / took_s

    def _attack(self, kind: str) -> str:
        """Sends a grammar that nobody has sent before."""
        number = next(self._numbers)
        params = {"max_tokens": 8, "structured_outputs": KINDS[kind](number)}
        request = EngineRequest(
            request_id=f"hostile-{number}",
            prompt_token_ids=[5],
            params=SamplingParams.from_mapping(params),
            seed=0,
            end_token_ids=(2,),
        )
        self._engine.add_request(request)
        return request.request_id


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-streams", type=int, default=16)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--num-clients", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    turns = Turns(LLM(), options.num_streams, options.num_tokens)
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        turns.tokens_per_second(kind, options.num_clients)  # warms up, and starts the processes
        turns.refused_after_s[kind].clear()
    for _ in range(options.rounds):
        alone = turns.tokens_per_second()
        rates = {kind: turns.tokens_per_second(kind, options.num_clients) for kind in KINDS}
        alone = (alone + turns.tokens_per_second()) / 2
        for kind, rate in rates.items():
            ratios[kind].append(rate / alone)
        print(f"alone {alone:7.1f} tokens/s; " + ", ".join(f"{kind} {rate:.1f}" for kind, rate in rates.items()))
    for kind, refused in turns.refused_after_s.items():
        print(f"{kind:5} grammars: {statistics.median(ratios[kind]):.3f} of the streams' speed alone (median)", end="")
        print(f"; {len(refused)} refused, after {statistics.median(refused):.2f} s (longest {max(refused):.2f} s)")


if __name__ == "__main__":
    main()
