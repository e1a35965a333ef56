"""ModelRunner: executes steps on one device. Deltas, model, logits where they are needed, sampler: in this order.

Knows nothing of scheduling; what to compute and where it lies comes in the SchedulerOutput.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.core.step import ModelRunnerOutput, NewRow, SchedulerOutput
from octavo.kernels.gather_rows import gather_rows
from octavo.models.decoder import Decoder
from octavo.runner.eager_runner import EagerRunner
from octavo.runner.input_batch import InputBatch, StepArrays
from octavo.runner.kv_cache import copy_blocks
from octavo.runner.pooler import add_embeddings
from octavo.runner.prompt_logprobs import prompt_spans
from octavo.runner.sampler import NOT_FINITE, Sampler
from octavo.runner.step_metadata import step_metadata
from octavo.sampling_params import SamplingParams

# Prompt positions whose logits are held at once: 64 rows of a 128k vocabulary are 32 MiB.
_LOGITS_ROWS = 64
_WARM_UP_TOKENS = (32, 1)
_CPU = torch.device("cpu")


class ModelRunner(EagerRunner):
    """An Executor on one device. Owns the KV cache's tensors, the rows' tables and the sampler.

    kv_caches: one tensor a layer, see kv_cache.py. The model's dtype and device are theirs.
    """

    def __init__(self, model: Decoder, kv_caches: list[Tensor], batch: InputBatch) -> None:
        super().__init__(kv_caches)
        self._model = model
        self._batch = batch
        self._sampler = Sampler(model.spec.vocab_size)

    def warm_up(self) -> None:
        """Runs steps on the null block, so that one-time work is done before the first request."""
        _, max_tokens = self._batch.token_ids.shape
        num_blocks = self._batch.block_table.shape[1]
        greedy = SamplingParams(temperature=0)
        for wanted in _WARM_UP_TOKENS:
            count = min(wanted, max_tokens - 1)
            new = NewRow(0, [0] * count, count, [0] * num_blocks, greedy, 0, (), [], False)
            self.execute(SchedulerOutput(0, [], [new], [], [], [0], [0], [count]))
            self.execute(SchedulerOutput(0, [0], [], [], [], [], [], []))

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Computes one step."""
        self._batch.apply(step)
        copy_blocks(self._kv_caches, step.block_copies)
        output = ModelRunnerOutput(step.step_id, [[] for _ in step.rows])
        if step.rows:
            arrays = self._batch.arrays(step)
            token_ids, positions = torch.from_numpy(arrays.token_ids), torch.from_numpy(arrays.positions)
            metadata = step_metadata(self._batch, arrays, _CPU)
            hidden = self._model(token_ids, positions, self._kv_caches, metadata)
            self._add_prompt_logprobs(step, arrays, hidden, output)
            self._sample(step, arrays, hidden, output)
            if arrays.pools.any():
                add_embeddings(step, arrays, self._batch, hidden, output)
        return output

    def _sample(self, step: SchedulerOutput, arrays: StepArrays, hidden: Tensor, output: ModelRunnerOutput) -> None:
        """Draws the next token of each row whose range ends at its last token; it becomes part of the row."""
        sampling = [index for index in np.flatnonzero(arrays.samples).tolist() if index not in output.failed]
        if not sampling:
            return
        batch, rows = self._batch, [step.rows[index] for index in sampling]
        last_tokens = torch.from_numpy(arrays.cu_seqlens_q[1:][sampling] - 1)
        if step.masks:
            batch.follow_grammars(step.masks)
        sampled = self._sampler.sample(
            self._model.compute_logits(gather_rows(hidden, last_tokens)),
            [batch.sampling_row(row) for row in rows],
            [batch.tokens_of(row) for row in rows],
        )
        for index, row, token_id in zip(sampling, rows, sampled.token_ids, strict=True):
            if token_id is not None:
                batch.append_token(row, token_id)
                output.sampled_token_ids[index].append(token_id)
        output.logprobs.update((sampling[i], [candidates]) for i, candidates in sampled.logprobs.items())
        output.failed.update((sampling[i], message) for i, message in sampled.failed.items())

    def _add_prompt_logprobs(
        self, step: SchedulerOutput, arrays: StepArrays, hidden: Tensor, output: ModelRunnerOutput
    ) -> None:
        """For rows that ask: the logprobs of the prompt tokens that this step's positions predict."""
        for span in prompt_spans(step, arrays, self._batch):
            found = span.logprobs(self._logits_of(hidden[span.begin : span.begin + len(span.targets)]))
            if found is None:
                output.failed[span.index] = NOT_FINITE
            else:
                output.prompt_logprobs[span.index] = found

    def _logits_of(self, hidden: Tensor) -> Iterator[NDArray[np.float32]]:
        """One row, fp32 [V], for each of `hidden` [n, hidden_size]."""
        for begin in range(0, len(hidden), _LOGITS_ROWS):
            yield from self._model.compute_logits(hidden[begin : begin + _LOGITS_ROWS]).numpy()
