"""InputBatch: the stable rows that running sequences live in, and the tensors of one step made from them.

A step changes rows by small deltas; tables are never rebuilt. Knows nothing of the model or of scheduling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.core.step import NewRow, SchedulerOutput
from octavo.kernels.paged_attention import AttentionMetadata
from octavo.runner.sampling_row import SamplingRow, Tokens


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model needs for one step of T tokens in B rows, parallel to `SchedulerOutput.rows`.

    token_ids, positions: int64 [T]. samples: bool [B], whether the row's range ends at its last token.
    """

    token_ids: Tensor
    positions: Tensor
    metadata: AttentionMetadata
    samples: NDArray[np.bool_]


class InputBatch:
    """The device tables of all rows. Owned by the model runner.

    token_ids: int32 [max_num_seqs, max_model_len + 1], prompt then output, valid up to num_tokens [max_num_seqs].
    block_table: int32 [max_num_seqs, blocks of max_model_len], valid up to num_blocks [max_num_seqs].
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int) -> None:
        self._block_size = block_size
        self._vocab_size = vocab_size
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.num_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self.block_table = np.zeros((max_num_seqs, -(-max_model_len // block_size)), np.int32)
        self.num_blocks = np.zeros(max_num_seqs, np.int64)
        self.sampling_rows: list[SamplingRow | None] = [None] * max_num_seqs
        self.wants_prompt_logprobs = np.zeros(max_num_seqs, np.bool_)

    def apply(self, step: SchedulerOutput) -> None:
        """Removals, new rows and new blocks of one step, in this order."""
        for row in step.removed_rows:
            assert self.sampling_rows[row] is not None, f"row {row} is removed but empty"
            self.sampling_rows[row] = None
        for new in step.new_rows:
            self._add(new)
        for row, blocks in step.new_blocks:
            first = self.num_blocks[row]
            self.block_table[row, first : first + len(blocks)] = blocks
            self.num_blocks[row] += len(blocks)

    def _add(self, new: NewRow) -> None:
        row = new.row
        assert self.sampling_rows[row] is None, f"row {row} is taken"
        self.sampling_rows[row] = SamplingRow(new, self._vocab_size)
        self.token_ids[row, : len(new.token_ids)] = new.token_ids
        self.num_tokens[row] = len(new.token_ids)
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self.block_table[row, : len(new.block_table)] = new.block_table
        self.num_blocks[row] = len(new.block_table)
        self.wants_prompt_logprobs[row] = new.prompt_logprobs

    def append_token(self, row: int, token_id: int) -> None:
        """The sampled token becomes the row's next token."""
        self.token_ids[row, self.num_tokens[row]] = token_id
        self.num_tokens[row] += 1
        self.sampling_row(row).add_output(token_id)

    def sampling_row(self, row: int) -> SamplingRow:
        """What the sequence in this row asks of the sampler."""
        found = self.sampling_rows[row]
        assert found is not None, f"row {row} is scheduled but empty"
        return found

    def tokens_of(self, row: int) -> Tokens:
        """View of the row's tokens so far: int32 [n]."""
        return self.token_ids[row, : self.num_tokens[row]]

    def step_inputs(self, step: SchedulerOutput) -> StepInputs:
        """The tensors of a step whose deltas have been applied.

        positions of row b   0 ...... computed ............ computed + scheduled
                                       [ this step's tokens )                    -> seq_lens[b] is its end
        tokens of the step   ... [cu_seqlens_q[b] ........ cu_seqlens_q[b + 1]) ...
        """
        rows = np.array(step.rows, np.int64)
        computed = np.array(step.num_computed_tokens, np.int64)
        scheduled = np.array(step.num_scheduled_tokens, np.int64)
        seq_lens = computed + scheduled
        ends = np.cumsum(scheduled)
        positions = np.arange(ends[-1]) + np.repeat(computed - ends + scheduled, scheduled)
        row_of_token = np.repeat(rows, scheduled)
        blocks = self.block_table[row_of_token, positions // self._block_size].astype(np.int64)
        max_seq_len = int(seq_lens.max())
        max_blocks = -(-max_seq_len // self._block_size)
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)),
            seq_lens=torch.from_numpy(seq_lens.astype(np.int32)),
            block_table=torch.from_numpy(self.block_table[rows, :max_blocks]),
            slot_mapping=torch.from_numpy(blocks * self._block_size + positions % self._block_size),
            max_seqlen_q=int(scheduled.max()),
            max_seq_len=max_seq_len,
        )
        return StepInputs(
            token_ids=torch.from_numpy(self.token_ids[row_of_token, positions].astype(np.int64)),
            positions=torch.from_numpy(positions),
            metadata=metadata,
            samples=seq_lens == self.num_tokens[rows],
        )
