"""InputBatch: the stable rows that running sequences live in, and the arrays of one step made from them.

A step changes rows by small deltas; tables are never rebuilt. Lives in host memory; knows nothing of the model, of
scheduling or of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.core.step import NewRow, SchedulerOutput, TokenMask
from octavo.runner.sampling_row import SamplingRow, Tokens

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepArrays:
    """One step of T tokens in B rows, parallel to `SchedulerOutput.rows`: int64, see AttentionMetadata for the names.

    rows, seq_lens: [B]; cu_seqlens_q: [B + 1]; token_ids, positions, slot_mapping: [T]. Token -1 - r is the one that
    row r sampled last and only the device knows. samples, pools: bool [B], whether the row's
    range ends at its last token and it then brings a token, or a vector.
    """

    rows: Integers
    seq_lens: Integers
    cu_seqlens_q: Integers
    token_ids: Integers
    positions: Integers
    slot_mapping: Integers
    samples: NDArray[np.bool_]
    pools: NDArray[np.bool_]

    @property
    def num_scheduled_tokens(self) -> Integers:
        """int64 [B], tokens of each row in this step."""
        return np.diff(self.cu_seqlens_q)


class InputBatch:
    """The tables of all rows. Owned by whoever runs the steps.

    token_ids: int32 [max_num_seqs, max_model_len + 1], prompt then output, valid up to num_tokens [max_num_seqs].
    block_table: int32 [max_num_seqs, blocks of max_model_len], valid up to num_blocks [max_num_seqs].
    new_rows: what each sequence brought, None where there is none.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, vocab_size: int) -> None:
        self.block_size = block_size
        self._vocab_size = vocab_size
        self.token_ids = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self.num_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self.block_table = np.zeros((max_num_seqs, -(-max_model_len // block_size)), np.int32)
        self.num_blocks = np.zeros(max_num_seqs, np.int64)
        self.new_rows: list[NewRow | None] = [None] * max_num_seqs
        self._sampling_rows: list[SamplingRow | None] = [None] * max_num_seqs
        self.wants_prompt_logprobs = np.zeros(max_num_seqs, np.bool_)
        self.wants_embedding = np.zeros(max_num_seqs, np.bool_)

    def apply(self, step: SchedulerOutput) -> None:
        """Removals, new rows and new blocks of one step, in this order."""
        for row in step.removed_rows:
            assert self.new_rows[row] is not None, f"row {row} is removed but empty"
            self.new_rows[row] = self._sampling_rows[row] = None
        for new in step.new_rows:
            self._add(new)
        for row, blocks in step.new_blocks:
            first = self.num_blocks[row]
            self.block_table[row, first : first + len(blocks)] = blocks
            self.num_blocks[row] += len(blocks)

    def _add(self, new: NewRow) -> None:
        row = new.row
        assert self.new_rows[row] is None, f"row {row} is taken"
        self.new_rows[row] = new
        self.token_ids[row, : len(new.token_ids)] = new.token_ids
        self.num_tokens[row] = len(new.token_ids)
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self.block_table[row, : len(new.block_table)] = new.block_table
        self.num_blocks[row] = len(new.block_table)
        self.wants_prompt_logprobs[row] = new.prompt_logprobs
        self.wants_embedding[row] = new.pooling is not None

    def append_token(self, row: int, token_id: int) -> None:
        """The sampled token becomes the row's next token."""
        self.sampling_row(row).add_output(token_id)
        self._append(row, token_id)

    def append_unknown(self, row: int) -> None:
        """The row's next token is the one that the device is about to sample."""
        self._append(row, -1 - row)

    def _append(self, row: int, token_id: int) -> None:
        self.token_ids[row, self.num_tokens[row]] = token_id
        self.num_tokens[row] += 1

    def new_row(self, row: int) -> NewRow:
        """What the sequence in this row brought."""
        found = self.new_rows[row]
        assert found is not None, f"row {row} is scheduled but empty"
        return found

    def sampling_row(self, row: int) -> SamplingRow:
        """What the sequence in this row asks of the host's sampler. Made at its first token: a device has its own."""
        made = self._sampling_rows[row]
        if made is None:
            made = self._sampling_rows[row] = SamplingRow(self.new_row(row), self._vocab_size)
        return made

    def follow_grammars(self, masks: Mapping[int, TokenMask]) -> None:
        """Waits for the masks of rows that follow a grammar: for the host's sampler."""
        for row, mask in masks.items():
            self.sampling_row(row).follow_grammar(mask_bias(mask, self._vocab_size))

    def tokens_of(self, row: int) -> Tokens:
        """View of the row's tokens so far: int32 [n]."""
        return self.token_ids[row, : self.num_tokens[row]]

    def arrays(self, step: SchedulerOutput) -> StepArrays:
        """The arrays of a step whose deltas have been applied.

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
        blocks = self.block_table[row_of_token, positions // self.block_size].astype(np.int64)
        is_at_end = seq_lens == self.num_tokens[rows]
        return StepArrays(
            rows=rows,
            seq_lens=seq_lens,
            cu_seqlens_q=np.concatenate(([0], ends)),
            token_ids=self.token_ids[row_of_token, positions].astype(np.int64),
            positions=positions,
            slot_mapping=blocks * self.block_size + positions % self.block_size,
            samples=is_at_end & ~self.wants_embedding[rows],
            pools=is_at_end & self.wants_embedding[rows],
        )


def mask_bias(mask: TokenMask, vocab_size: int) -> NDArray[np.float32]:
    """fp32 [V], once the mask is there: 0 for tokens that may come, else -inf, also for those unknown to it."""
    allowed = mask.allowed().ljust(-(-vocab_size // 8), b"\0")
    return _BYTE_BIAS.take(np.frombuffer(allowed, np.uint8), axis=0).reshape(-1)[:vocab_size]


# What each byte of a mask adds to the logits of its eight tokens.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BYTE_BIAS = np.where(_BITS == 1, np.float32(0), np.float32(-np.inf))
