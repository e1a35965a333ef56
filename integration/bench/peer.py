"""transformers' `generate` on the weights that Octavo runs: one request at a time, or static left-padded batches.

Gives the same Repetition as Octavo's own measurement. Only the tokens that were asked for count as output: what a batch
computes beyond a request's own length is the batch's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from octavo.bench import Repetition, gaps
from octavo.checkpoint import open_checkpoint
from octavo.models.gguf_weights import GGUFReader
from octavo.workloads import Item, Workload


class Clock(BaseStreamer):
    """When each token came. The prompt is put first and does not count."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._seen_prompt:
            self.times.append(perf_counter())
        self._seen_prompt = True

    def end(self) -> None:
        pass


class TransformersPeer:
    """One model; each job says how many requests go into a batch."""

    def __init__(self, model: str | None, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        logging.set_verbosity_error()
        self._model = load_llama(model, torch.bfloat16)

    def warm_up(self) -> None:
        for batch_size in (1, 16):
            self._generate([Item(list(range(100, 164)), 4)] * batch_size, None)

    def run_once(self, workload: Workload, salt: str, batch_size: int) -> Repetition:
        """`salt` means nothing here: there is no prefix cache."""
        items, ttft_s, itl_s = workload.items, [], []
        start = perf_counter()
        for first in range(0, len(items), batch_size):
            # A streamer works for a single sequence only; one request is timed token by token.
            clock = Clock() if len(items) == 1 else None
            self._generate(items[first : first + batch_size], clock)
            if clock is not None:
                ttft_s, itl_s = [clock.times[0] - start], gaps(clock.times)
        return Repetition(
            wall_s=perf_counter() - start,
            num_requests=len(items),
            num_prompt_tokens=workload.num_prompt_tokens,
            num_output_tokens=workload.num_output_tokens,
            ttft_s=ttft_s,
            itl_s=itl_s,
        )

    def shutdown(self) -> None:
        pass

    def _generate(self, items: Sequence[Item], streamer: Clock | None) -> None:
        width = max(len(item.prompt_token_ids) for item in items)
        count = max(item.num_output_tokens for item in items)
        input_ids = torch.zeros((len(items), width), dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, item in enumerate(items):
            input_ids[row, width - len(item.prompt_token_ids) :] = torch.tensor(item.prompt_token_ids)
            mask[row, width - len(item.prompt_token_ids) :] = 1
        greedy = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0, eos_token_id=None)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=input_ids, attention_mask=mask, generation_config=greedy, streamer=streamer
            )
        assert output.shape == (len(items), width + count)


def load_llama(path: str | None, dtype: torch.dtype) -> LlamaForCausalLM:
    """A GGUF file of the llama architecture, dequantised; or a model folder."""
    checkpoint = open_checkpoint(path)
    if checkpoint.gguf is None:
        return LlamaForCausalLM.from_pretrained(checkpoint.path, dtype=dtype).eval()
    reader = GGUFReader(checkpoint.gguf.reader, checkpoint.config)
    keys = LlamaConfig().to_dict().keys() & checkpoint.config.keys()
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{key: checkpoint.config[key] for key in keys}))
    state = {name: reader.read(name, dtype) for name in reader.shapes}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state, assign=True)
    # Built anew off the meta device: its frequencies are no part of the weights.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.generation_config = GenerationConfig(eos_token_id=None)
    return model.eval()
