"""Octavo's engine for the comparison with its peers: token ids in, token ids out, as in `octavo.bench`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from lines import Collector, Item, Outcome, serve

from octavo.config import NOBODY_WAITS_S, EngineConfig
from octavo.engine import Engine
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams


class Octavo:
    """The engine in this process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        chosen = {name: settings[name] for name in ("model", "quantization") if settings.get(name)}
        mapping = {"dtype": "bfloat16", "num_threads": settings["threads"], "itl_budget_s": NOBODY_WAITS_S} | chosen
        self._engine = Engine.from_config(EngineConfig.from_mapping(mapping))
        self._num_runs = 0
        self.version = metadata.version("octavo")

    def prepare(self, items: Sequence[Item]) -> None:
        pass

    def run(self, items: Sequence[Item]) -> Outcome:
        self._num_runs += 1
        collector = Collector(items)
        for i, item in enumerate(items):
            params = SamplingParams(temperature=0, max_tokens=item.num_output_tokens, ignore_eos=True)
            request = EngineRequest(
                request_id=f"{self._num_runs}-{i}", prompt_token_ids=item.prompt_token_ids, params=params, seed=0
            )
            self._engine.add_request(request)
        while self._engine.has_work:
            for output in self._engine.step():
                collector.add(int(output.request_id.partition("-")[2]), output.token_ids)
        return collector.outcome()

    def close(self) -> None:
        self._engine.shutdown()


if __name__ == "__main__":
    serve(Octavo)
