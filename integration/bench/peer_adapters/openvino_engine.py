"""OpenVINO GenAI's continuous batching pipeline for the comparison, fed with token ids and stepped by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
import openvino_genai
from lines import Collector, Item, Outcome, serve

CACHE_GIB = 4


class OpenVINO:
    """One pipeline. With `first_ahead` the first request has its first token before the others are submitted: the
    prefix cache is looked into only then.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        scheduling = openvino_genai.SchedulerConfig()
        scheduling.cache_size = CACHE_GIB
        scheduling.max_num_seqs = 64
        scheduling.max_num_batched_tokens = 2048
        scheduling.enable_prefix_caching = True
        scheduling.dynamic_split_fuse = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            settings["model"], scheduling, "CPU", {"INFERENCE_NUM_THREADS": settings["threads"]}
        )
        self._first_ahead = bool(settings.get("first_ahead"))
        self._num_requests = 0
        self.version = openvino_genai.__version__

    def prepare(self, items: Sequence[Item]) -> None:
        pass

    def run(self, items: Sequence[Item]) -> Outcome:
        collector = Collector(items)
        num_ahead = 1 if self._first_ahead else len(items)
        handles = [self._add(item) for item in items[:num_ahead]]
        while self._first_ahead and not self._step(handles, collector):
            pass
        handles += [self._add(item) for item in items[num_ahead:]]
        while self._pipeline.has_non_finished_requests():
            self._step(handles, collector)
        return collector.outcome()

    def _step(self, handles: Sequence[Any], collector: Collector) -> int:
        """The number of requests that got tokens."""
        self._pipeline.step()
        ready = [(i, handle) for i, handle in enumerate(handles) if handle.can_read()]
        for i, handle in ready:
            for output in handle.read().values():
                collector.add(i, output.generated_ids)
        return len(ready)

    def close(self) -> None:
        pass

    def _add(self, item: Item) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = item.num_output_tokens
        config.ignore_eos = True
        config.do_sample = False
        self._num_requests += 1
        prompt = openvino.Tensor(np.array([item.prompt_token_ids], dtype=np.int64))
        return self._pipeline.add_request(self._num_requests, prompt, config)


if __name__ == "__main__":
    serve(OpenVINO)
