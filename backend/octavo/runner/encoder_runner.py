"""EncoderRunner: executes steps of an encoder, on a CPU or a GPU: whole prompts in, a vector or a score of each out.

There is no token to draw, no step that waits for the one before it, and so neither sampler nor graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.step import ModelRunnerOutput, NewRow, SchedulerOutput
from octavo.models.encoder import Encoder
from octavo.pooling import Pooling, PoolingKind
from octavo.runner.eager_runner import EagerRunner
from octavo.runner.input_batch import InputBatch
from octavo.runner.pooler import add_embeddings, add_scores
from octavo.runner.step_metadata import step_metadata
from octavo.sampling_params import SamplingParams


class EncoderRunner(EagerRunner):
    """An Executor on one device. Owns the KV cache's tensors, which hold a prompt for one step, and the rows' tables.

    kv_caches: one tensor a layer, see kv_cache.py. The model's dtype and device are theirs.
    """

    def __init__(self, model: Encoder, kv_caches: list[Tensor], batch: InputBatch) -> None:
        super().__init__(kv_caches)
        self._model = model
        self._batch = batch
        self._device = kv_caches[0].device

    def warm_up(self) -> None:
        """The longest prompt on the null block: one-time work is done before the first request."""
        num_tokens = self._batch.token_ids.shape[1] - 1
        blocks = [0] * self._batch.block_table.shape[1]
        pooling = Pooling(PoolingKind.LOGIT if self._model.head else PoolingKind.MEAN, normalize=False)
        new = NewRow(0, [0] * num_tokens, num_tokens, blocks, SamplingParams(), 0, (), [], False, pooling)
        self.execute(SchedulerOutput(0, [], [new], [], [], [0], [0], [num_tokens]))
        self.execute(SchedulerOutput(0, [0], [], [], [], [], [], []))

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Computes one step."""
        assert not step.block_copies, "only children of one request fork"
        self._batch.apply(step)
        output = ModelRunnerOutput(step.step_id, [[] for _ in step.rows])
        if step.rows:
            arrays = self._batch.arrays(step)
            token_ids = torch.from_numpy(arrays.token_ids).to(self._device)
            positions = torch.from_numpy(arrays.positions).to(self._device)
            metadata = step_metadata(self._batch, arrays, self._device)
            token_types = self._token_types(step)
            hidden = self._model(token_ids, positions, self._kv_caches, metadata, token_types)
            if self._model.head is None:
                add_embeddings(step, arrays, self._batch, hidden.cpu(), output)
            else:
                first = torch.from_numpy(arrays.cu_seqlens_q[:-1]).to(self._device)
                add_scores(step, arrays, self._batch, self._model.head(hidden[first]).cpu(), output)
        return output

    def _token_types(self, step: SchedulerOutput) -> Tensor | None:
        """Of the step's tokens, int64 [T]; None where no row brought any."""
        rows = [self._batch.new_row(row) for row in step.rows]
        if not any(new.token_type_ids for new in rows):
            return None
        types = [each for new in rows for each in new.token_type_ids or [0] * len(new.token_ids)]
        return torch.tensor(types, device=self._device)
