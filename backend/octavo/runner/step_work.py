"""StepWork: what the device does in a step, as functions that read static memory or the step's staged numbers.

Each is launched, measured or captured as it is; none of them looks at a number. Knows no host state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.decode_inputs import decode_inputs
from octavo.kernels.decode_plan import plan_decode
from octavo.kernels.paged_attention import AttentionMetadata
from octavo.kernels.sampling import sample
from octavo.models.decoder import Decoder
from octavo.runner.device_tables import DeviceTables


@dataclass(frozen=True, slots=True)
class MixedInputs:
    """A step of T tokens in B rows of which S draw, int64 on the device; see StepArrays for the names.

    last_tokens: [S], where in the step the rows that draw have their last token. drawing_rows: [S]. sampling_rows: [S],
    the same, or -1 where the host draws. num_tokens: [S]. The first num_decode_rows have one token each.
    """

    rows: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    last_tokens: Tensor
    drawing_rows: Tensor
    sampling_rows: Tensor
    num_tokens: Tensor
    num_decode_rows: int
    max_seqlen_q: int
    max_seq_len: int


@dataclass(frozen=True, slots=True)
class StepWork:
    """The model, its KV cache and the tables, and what a step does with them. Owned by the device runner."""

    model: Decoder
    kv_caches: Sequence[Tensor]
    tables: DeviceTables

    @property
    def block_size(self) -> int:
        """Tokens a KV block."""
        return self.kv_caches[0].shape[3]

    def decode(self, rows: Tensor, token_ids: Tensor, positions: Tensor) -> None:
        """One token of each row, and the draw of the next: a graph, once captured. int64 [B] each.

        Places that only pad name the row that is nobody's. Leaves what was drawn in the tables.
        """
        tables = self.tables
        inputs = decode_inputs(rows, positions, tables.block_table, self.block_size)
        plan_decode(inputs.seq_lens, tables.decode_scratch)
        num_rows = rows.shape[0]
        metadata = AttentionMetadata(
            cu_seqlens_q=tables.cu_seqlens[: num_rows + 1],
            seq_lens=inputs.seq_lens,
            block_table=inputs.block_table,
            slot_mapping=inputs.slot_mapping,
            max_seqlen_q=1,
            max_seq_len=inputs.block_table.shape[1] * self.block_size,
            num_decode_rows=num_rows,
            decode_scratch=tables.decode_scratch,
        )
        hidden = self.model(token_ids, positions, self.kv_caches, metadata, tables.sampled)
        self._draw(hidden, inputs.num_tokens, inputs.sampling_rows, rows)

    def mixed(self, inputs: MixedInputs) -> Tensor:
        """Any tokens of any rows, and the draws of those that come to their end. -> hidden states [T, hidden_size]."""
        tables = self.tables
        max_blocks = -(-inputs.max_seq_len // self.block_size)
        metadata = AttentionMetadata(
            cu_seqlens_q=inputs.cu_seqlens_q.int(),
            seq_lens=inputs.seq_lens.int(),
            block_table=tables.block_table[:, :max_blocks].index_select(0, inputs.rows),
            slot_mapping=inputs.slot_mapping,
            max_seqlen_q=inputs.max_seqlen_q,
            max_seq_len=inputs.max_seq_len,
            num_decode_rows=inputs.num_decode_rows,
            decode_scratch=tables.decode_scratch,
        )
        if inputs.num_decode_rows:
            plan_decode(metadata.seq_lens[: inputs.num_decode_rows], tables.decode_scratch)
        hidden = self.model(inputs.token_ids, inputs.positions, self.kv_caches, metadata, tables.sampled)
        if len(inputs.last_tokens):
            last = hidden.index_select(0, inputs.last_tokens)
            self._draw(last, inputs.num_tokens, inputs.sampling_rows.int(), inputs.drawing_rows)
        return hidden

    def _draw(self, hidden: Tensor, num_tokens: Tensor, sampling_rows: Tensor, rows: Tensor) -> None:
        """The next token of each of `rows`, into `drawn` and `sampled`."""
        tables = self.tables
        logits = self.model.compute_logits(hidden)
        scratch = tables.sampling_scratch
        drawn = sample(logits, tables.sampling, scratch, num_tokens, sampling_rows, tables.drawn)
        tables.sampled.index_copy_(0, rows, drawn.token_ids)
