"""HostRows: what the device does not do by itself, done by the CPU: the host waits for what it needs meanwhile.

That is prompt logprobs, rows that the sampler's tables cannot hold, and vectors of prompts. Knows nothing of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.core.step import ModelRunnerOutput, SchedulerOutput
from octavo.runner.device import Device
from octavo.runner.input_batch import InputBatch, Integers, StepArrays
from octavo.runner.pooler import add_embedding
from octavo.runner.prompt_logprobs import prompt_spans
from octavo.runner.sampler import NOT_FINITE, Sampler
from octavo.runner.step_work import StepWork

# Rows whose logits come to the host at once: 8 MiB of a vocabulary of 128k.
_NUM_ROWS = 16


class HostRows:
    """Owns the host's sampler, and the memory through which logits come.

    draws_for: bool [max_num_seqs], rows of the tables that are sampled here. num_rows_drawn counts their tokens.
    """

    def __init__(self, work: StepWork, device: Device, batch: InputBatch) -> None:
        vocab_size = work.model.spec.vocab_size
        self.draws_for = np.zeros(work.tables.max_num_seqs, np.bool_)
        self.num_rows_drawn = 0
        self._work = work
        self._device = device
        self._batch = batch
        self._sampler = Sampler(vocab_size)
        self._hidden: Tensor | None = None
        self._logits = torch.zeros(_NUM_ROWS, vocab_size, device=device.torch_device)
        pinned = device.pinned(-(-_NUM_ROWS * vocab_size // 2)).view(torch.float32)
        self._arrived = pinned[: _NUM_ROWS * vocab_size].view(_NUM_ROWS, vocab_size)
        hidden_size = work.model.spec.hidden_size
        self._states = torch.zeros(_NUM_ROWS, hidden_size, device=device.torch_device)
        pinned = device.pinned(-(-_NUM_ROWS * hidden_size // 2)).view(torch.float32)
        self._arrived_states = pinned[: _NUM_ROWS * hidden_size].view(_NUM_ROWS, hidden_size)
        self._numbers = device.pinned(2 * _NUM_ROWS)

    def of(self, step: SchedulerOutput, drawing: Integers) -> list[int]:
        """Which of the drawing rows (indices in the step) are drawn here."""
        return [index for index in drawing.tolist() if self.draws_for[step.rows[index]]]

    def remember(self, hidden: Tensor) -> None:
        """Launched: the step's hidden states, [T, hidden_size]."""
        self._hidden = hidden

    def draw(
        self, step: SchedulerOutput, arrays: StepArrays, on_host: Sequence[int], output: ModelRunnerOutput
    ) -> None:
        """After the step was launched: prompt logprobs, then the tokens of the rows `on_host`, into `output`."""
        for span in prompt_spans(step, arrays, self._batch):
            tokens = np.arange(span.begin, span.begin + len(span.targets))
            found = span.logprobs(row for rows in self._logits_of(tokens) for row in rows)
            if found is None:
                output.failed[span.index] = NOT_FINITE
            else:
                output.prompt_logprobs[span.index] = found
        left = [index for index in on_host if index not in output.failed]
        done = 0
        for logits in self._logits_of(arrays.cu_seqlens_q[1:][left] - 1):
            self._sample(step, left[done : done + len(logits)], logits, output)
            done += len(logits)

    def pool(self, step: SchedulerOutput, arrays: StepArrays, output: ModelRunnerOutput) -> None:
        """After the step was launched: the vectors of the rows that pool in it, which are decoders' last tokens."""
        pooling = np.flatnonzero(arrays.pools)
        parts = self._rows_of(
            arrays.cu_seqlens_q[1:][pooling] - 1, lambda hidden: hidden, self._states, self._arrived_states
        )
        states = (row for part in parts for row in torch.from_numpy(part).unsqueeze(1))
        for index, state in zip(pooling.tolist(), states, strict=True):
            add_embedding(index, state, self._batch.new_row(step.rows[index]), output)

    def _logits_of(self, tokens: Integers) -> Iterator[NDArray[np.float32]]:
        """Logits of the named tokens of the step, fp32 [n, V] at a time; each is overwritten by the next."""
        return self._rows_of(tokens, self._work.model.compute_logits, self._logits, self._arrived)

    def _rows_of(
        self, tokens: Integers, compute: Callable[[Tensor], Tensor], computed: Tensor, arrived: Tensor
    ) -> Iterator[NDArray[np.float32]]:
        """What `compute` makes of the hidden states of the named tokens, by way of `computed` into pinned `arrived`."""
        for begin in range(0, len(tokens), _NUM_ROWS):
            part = tokens[begin : begin + _NUM_ROWS]
            self._numbers[: len(part)] = torch.from_numpy(part)
            count = len(part)

            def work(count: int = count) -> None:
                assert self._hidden is not None
                places = self._numbers[:count].to(computed.device, non_blocking=True)
                computed[:count].copy_(compute(self._hidden.index_select(0, places)))

            self._device.launch(work)
            self._device.fetch(computed[:count], arrived[:count]).wait()
            yield arrived[:count].numpy()

    def _sample(
        self, step: SchedulerOutput, indices: Sequence[int], logits: NDArray[np.float32], output: ModelRunnerOutput
    ) -> None:
        batch, rows = self._batch, [step.rows[index] for index in indices]
        batch.follow_grammars({row: step.masks[row] for row in rows if row in step.masks})
        sampled = self._sampler.sample(
            torch.from_numpy(logits), [batch.sampling_row(row) for row in rows], [batch.tokens_of(row) for row in rows]
        )
        self.num_rows_drawn += len(rows)
        output.failed.update((indices[place], message) for place, message in sampled.failed.items())
        output.logprobs.update((indices[place], [found]) for place, found in sampled.logprobs.items())
        drawn = [(i, row, token) for i, row, token in zip(indices, rows, sampled.token_ids, strict=True)]
        for index, row, token_id in drawn:
            if token_id is not None:
                batch.append_token(row, token_id)
                output.sampled_token_ids[index].append(token_id)
