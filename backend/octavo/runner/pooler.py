"""Vectors of whole prompts from hidden states, or scores, for the rows that ask for one instead of a token.

In numpy, on one thread: the order of additions depends on the row alone, not on the batch around it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from octavo.core.step import ModelRunnerOutput, NewRow, SchedulerOutput
from octavo.pooling import PoolingKind
from octavo.runner.input_batch import InputBatch, StepArrays
from octavo.runner.sampler import NOT_FINITE

_SHORTEST = 1e-12


def add_embeddings(
    step: SchedulerOutput, arrays: StepArrays, batch: InputBatch, hidden: Tensor, output: ModelRunnerOutput
) -> None:
    """For all rows that pool in this step, into `output`. hidden: [T, hidden_size] on CPU."""
    for index in np.flatnonzero(arrays.pools).tolist():
        begin, end = arrays.cu_seqlens_q[index : index + 2].tolist()
        add_embedding(index, hidden[begin:end], batch.new_row(step.rows[index]), output)


def add_embedding(index: int, hidden: Tensor, new: NewRow, output: ModelRunnerOutput) -> None:
    """For the row at place `index` of the step. hidden: [n, hidden_size], of its last n tokens."""
    assert new.pooling is not None
    vector = _pooled(hidden, new.pooling.kind, len(new.token_ids))[: new.pooling.dimensions]
    if new.pooling.normalize:
        vector = vector / max(float(np.linalg.norm(vector)), _SHORTEST)
    _bring(index, vector, output)


def add_scores(
    step: SchedulerOutput, arrays: StepArrays, batch: InputBatch, logits: Tensor, output: ModelRunnerOutput
) -> None:
    """For all rows that pool in this step, into `output`. logits: float32 [B] on CPU, one a row."""
    for index in np.flatnonzero(arrays.pools).tolist():
        pooling = batch.new_row(step.rows[index]).pooling
        assert pooling is not None
        number = logits[index : index + 1].double().numpy()
        _bring(index, 1 / (1 + np.exp(-number)) if pooling.kind is PoolingKind.SIGMOID else number, output)


def _bring(index: int, vector: NDArray[np.float64], output: ModelRunnerOutput) -> None:
    if np.isfinite(vector).all():
        output.embeddings[index] = vector.astype("<f4").tobytes()
    else:
        output.failed[index] = NOT_FINITE


def _pooled(hidden: Tensor, kind: PoolingKind, num_tokens: int) -> NDArray[np.float64]:
    if kind is PoolingKind.LAST:
        last: NDArray[np.float64] = hidden[-1].double().numpy()
        return last
    assert len(hidden) == num_tokens, "the prompt was computed in parts"
    states = hidden[:1] if kind is PoolingKind.CLS else hidden
    mean: NDArray[np.float64] = states.float().numpy().mean(0, dtype=np.float64)
    return mean
