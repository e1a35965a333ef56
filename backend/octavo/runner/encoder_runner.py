"""EncoderRunner: executes steps of an encoder, on a CPU or a GPU: whole prompts in, a vector of each out.

There is no token to draw, no step that waits for the one before it, and so neither sampler nor graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.core.step import ModelRunnerOutput, NewRow, SchedulerOutput
from octavo.models import Model
from octavo.pooling import Pooling, PoolingKind
from octavo.runner.eager_runner import EagerRunner
from octavo.runner.input_batch import InputBatch
from octavo.runner.pooler import add_embeddings
from octavo.runner.step_metadata import step_metadata
from octavo.sampling_params import SamplingParams


class EncoderRunner(EagerRunner):
    """An Executor on one device. Owns the KV cache's tensors, which hold a prompt for one step, and the rows' tables.

    kv_caches: one tensor a layer, see kv_cache.py. The model's dtype and device are theirs.
    """

    def __init__(self, model: Model, kv_caches: list[Tensor], batch: InputBatch) -> None:
        super().__init__(kv_caches)
        self._model = model
        self._batch = batch
        self._device = kv_caches[0].device

    def warm_up(self) -> None:
        """The longest prompt on the null block: one-time work is done before the first request."""
        num_tokens = self._batch.token_ids.shape[1] - 1
        blocks = [0] * self._batch.block_table.shape[1]
        pooling = Pooling(PoolingKind.MEAN, normalize=True)
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
            hidden = self._model(token_ids, positions, self._kv_caches, metadata)
            add_embeddings(step, arrays, self._batch, hidden.cpu(), output)
        return output
