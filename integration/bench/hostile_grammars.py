"""What streams lose while somebody sends hostile grammars, one after the other: tokens/s with and without, in turns.

    python integration/bench/hostile_grammars.py [--num-streams 16] [--num-tokens 128] [--rounds 5]

The next one is sent when the last one is refused: the worst that one client can do that waits for its answers.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator

from octavo import LLM, SamplingParams
from octavo.outputs import FinishReason
from octavo.request import EngineRequest


def hostile_requests() -> Iterator[EngineRequest]:
    """Each with a grammar of its own, so that none is known already: intersections that explode."""
    for number in itertools.count():
        terms = " & ".join(f"/.*{chr(97 + i)}.*{i}{{{300 + number}}}/" for i in range(26))
        params = {"max_tokens": 8, "structured_outputs": {"grammar": f"start: A\nA: {terms}"}}
        yield EngineRequest(
            request_id=f"hostile-{number}",
            prompt_token_ids=[5],
            params=SamplingParams.from_mapping(params),
            seed=0,
            end_token_ids=(2,),
        )


class Turns:
    """Runs batches of plain streams on one engine, with or without an attacker."""

    def __init__(self, llm: LLM, num_streams: int, num_tokens: int) -> None:
        self._engine = llm.engine
        self._engine.gate.use(llm.tokenizer.vocabulary)
        self._num_streams, self._num_tokens = num_streams, num_tokens
        self._attacks = hostile_requests()
        self._numbers = itertools.count()
        self.refused_after_s: list[float] = []

    def tokens_per_second(self, attacked: bool) -> float:
        """Of one batch, from its first step to its last."""
        params = SamplingParams(temperature=0, max_tokens=self._num_tokens, ignore_eos=True)
        batch = next(self._numbers)
        for i in range(self._num_streams):
            prompt = [100 + (7 * i + j) % 1000 for j in range(32)]
            self._engine.add_request(
                EngineRequest(request_id=f"{batch}-{i}", prompt_token_ids=prompt, params=params, seed=0)
            )
        num_live, attack, sent_at, began_at = self._num_streams, "", 0.0, time.perf_counter()
        while num_live:
            if attacked and not attack:
                request = next(self._attacks)
                attack, sent_at = request.request_id, time.perf_counter()
                self._engine.add_request(request)
            for output in self._engine.step():
                if output.request_id == attack:
                    assert output.finish_reason is FinishReason.REJECTED, "a hostile grammar was taken"
                    self.refused_after_s.append(time.perf_counter() - sent_at)
                    attack = ""
                elif output.finish_reason is not None:
                    num_live -= 1
        took_s = time.perf_counter() - began_at
        if attack:
            self._engine.abort(attack)
        while self._engine.has_work:
            self._engine.step()
        return self._num_streams * self._num_tokens / took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-streams", type=int, default=16)
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    turns = Turns(LLM(), options.num_streams, options.num_tokens)
    found: dict[str, list[float]] = {"alone": [], "attacked": []}
    turns.tokens_per_second(attacked=True)  # warms up, and starts the processes
    turns.refused_after_s.clear()
    for _ in range(options.rounds):
        found["alone"].append(turns.tokens_per_second(attacked=False))
        found["attacked"].append(turns.tokens_per_second(attacked=True))
    for name, rates in found.items():
        print(f"{name:8} {statistics.median(rates):7.1f} tokens/s  (rounds: {', '.join(f'{r:.1f}' for r in rates)})")
    ratios = [attacked / alone for attacked, alone in zip(found["attacked"], found["alone"], strict=True)]
    print(f"attacked / alone: {statistics.median(ratios):.3f} (median of the rounds' own ratios)")
    refused = turns.refused_after_s
    print(f"{len(refused)} refused, after {statistics.median(refused):.2f} s (longest {max(refused):.2f} s)")


if __name__ == "__main__":
    main()
