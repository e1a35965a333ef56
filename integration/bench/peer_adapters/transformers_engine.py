"""transformers for the comparison: one request at a time, static left-padded batches, or its continuous batching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from lines import Collector, Item, Outcome, serve
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.streamers import BaseStreamer

PAD = 2


class Ticks(BaseStreamer):
    """Hands the tokens of a batch on as they come. The prompt is put first and does not count."""

    def __init__(self, collector: Collector, index: int) -> None:
        self._collector = collector
        self._index = index
        self._seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._seen_prompt:
            self._collector.add(self._index, value.tolist())
        self._seen_prompt = True

    def end(self) -> None:
        pass


class Static:
    """`generate`. What a batch computes beyond a request's own length is the batch's loss."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._model = load(settings)
        self._batch_size = settings["batch_size"]
        self.version = version()

    def prepare(self, items: Sequence[Item]) -> None:
        pass

    def run(self, items: Sequence[Item]) -> Outcome:
        collector = Collector(items)
        for first in range(0, len(items), self._batch_size):
            self._run_batch(items[first : first + self._batch_size], collector, first)
        return collector.outcome()

    def close(self) -> None:
        pass

    def _run_batch(self, items: Sequence[Item], collector: Collector, first: int) -> None:
        width = max(len(item.prompt_token_ids) for item in items)
        input_ids = torch.full((len(items), width), PAD)
        mask = torch.zeros_like(input_ids)
        for row, item in enumerate(items):
            input_ids[row, width - len(item.prompt_token_ids) :] = torch.tensor(item.prompt_token_ids)
            mask[row, width - len(item.prompt_token_ids) :] = 1
        count = max(item.num_output_tokens for item in items)
        greedy = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=PAD, eos_token_id=None)
        # A streamer works for a single sequence only.
        streamer = Ticks(collector, first) if len(items) == 1 else None
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=input_ids, attention_mask=mask, generation_config=greedy, streamer=streamer
            )
        if streamer is None:
            for row, item in enumerate(items):
                collector.add(first + row, made[row, width : width + item.num_output_tokens].tolist())


class Continuous:
    """`generate_batch`'s manager: requests come and go in a paged cache."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._model = load(settings, attn_implementation="paged|sdpa")
        greedy = GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=PAD, max_new_tokens=256, use_cuda_graph=False
        )
        batching = ContinuousBatchingConfig(block_size=32, num_blocks=1600, max_batch_tokens=2048)
        self._context = self._model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=batching
        )
        self._manager = self._context.__enter__()
        self.version = version()

    def prepare(self, items: Sequence[Item]) -> None:
        pass

    def run(self, items: Sequence[Item]) -> Outcome:
        collector = Collector(items)
        seen = [0] * len(items)
        index_of = {self._add(item, streaming=len(items) == 1): i for i, item in enumerate(items)}
        unfinished = len(items)
        while unfinished:
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    raise RuntimeError("the manager has stopped")
                continue
            if result.error is not None:
                raise RuntimeError(result.error)
            i = index_of[result.request_id]
            collector.add(i, result.generated_tokens[seen[i] :])
            seen[i] = len(result.generated_tokens)
            unfinished -= result.is_finished()
        return collector.outcome()

    def close(self) -> None:
        self._context.__exit__(None, None, None)

    def _add(self, item: Item, streaming: bool) -> str:
        request_id: str = self._manager.add_request(
            item.prompt_token_ids, max_new_tokens=item.num_output_tokens, streaming=streaming
        )
        return request_id


def load(settings: dict[str, Any], **more: Any) -> Any:
    torch.set_num_threads(settings["threads"])
    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16, **more).eval()
    model.generation_config.eos_token_id = None
    return model


def version() -> str:
    return f"{transformers.__version__}, torch {torch.__version__}"


def open_way(settings: dict[str, Any]) -> Static | Continuous:
    return Static(settings) if "batch_size" in settings else Continuous(settings)


if __name__ == "__main__":
    serve(open_way)
