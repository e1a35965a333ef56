"""vLLM's CPU build for the comparison: its offline engine, fed with token ids and stepped by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import vllm
from lines import Collector, Item, Outcome, serve


class VLLM:
    """The engine as `LLM` makes it. W2's requests all fit at once."""

    def __init__(self, settings: dict[str, Any]) -> None:
        llm = vllm.LLM(
            settings["model"],
            dtype="bfloat16",
            max_model_len=4096,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            enable_prefix_caching=True,
            disable_log_stats=True,
        )
        self._engine = llm.llm_engine
        self._num_runs = 0
        self.version = vllm.__version__

    def prepare(self, items: Sequence[Item]) -> None:
        pass

    def run(self, items: Sequence[Item]) -> Outcome:
        self._num_runs += 1
        collector = Collector(items)
        # The engine gives ids of its own to what it is asked; those asked for come back in `request_id` up to a "-".
        for i, item in enumerate(items):
            params = vllm.SamplingParams(
                temperature=0,
                max_tokens=item.num_output_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=vllm.sampling_params.RequestOutputKind.DELTA,
            )
            self._engine.add_request(f"{self._num_runs}.{i}", {"prompt_token_ids": item.prompt_token_ids}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                index = int(output.request_id.partition("-")[0].partition(".")[2])
                collector.add(index, output.outputs[0].token_ids)
        return collector.outcome()

    def close(self) -> None:
        pass


if __name__ == "__main__":
    serve(VLLM)
