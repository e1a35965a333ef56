"""DeviceTables: what the device itself remembers of the rows, and the memory that its steps work in.

All of it is made once and stays where it is, so that captured graphs find it. Knows no sequence: rows only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.decode_plan import DecodeCapacity, DecodeScratch
from octavo.kernels.sampled_row import Sampled
from octavo.kernels.sampling import SamplingScratch
from octavo.kernels.sampling_tables import SamplingTables
from octavo.models.config import DecoderSpec


@dataclass(frozen=True, slots=True)
class DeviceTables:
    """For R rows. Owned by the device runner; written by launched work only.

    block_table: int32 [R + 1, max_blocks]; the last row is nobody's and names the null block: what only pads a step
    uses it. sampled: int64 [R + 1], the token that each row sampled last. drawn: what the sampler writes, over
    drawn_words. cu_seqlens: int32 [R + 1], 0, 1, 2, ... of a step with one token a row.
    """

    block_table: Tensor
    sampled: Tensor
    cu_seqlens: Tensor
    sampling: SamplingTables
    sampling_scratch: SamplingScratch
    decode_scratch: DecodeScratch
    drawn_words: Tensor
    drawn: Sampled

    @classmethod
    def allocate(
        cls, spec: DecoderSpec, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device
    ) -> DeviceTables:
        """Empty tables for rows of up to max_model_len tokens."""
        capacity = DecodeCapacity(max_num_seqs, max_model_len, spec.num_heads, spec.head_dim)
        drawn_words = torch.zeros(Sampled.num_words(max_num_seqs), dtype=torch.int64, device=device)
        max_blocks = -(-max_model_len // block_size)
        return cls(
            block_table=torch.zeros(max_num_seqs + 1, max_blocks, dtype=torch.int32, device=device),
            sampled=torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=device),
            cu_seqlens=torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device),
            sampling=SamplingTables.allocate(max_num_seqs, spec.vocab_size, device),
            sampling_scratch=SamplingScratch.allocate(max_num_seqs, spec.vocab_size, device),
            decode_scratch=capacity.allocate(set(spec.sliding_windows), device),
            drawn_words=drawn_words,
            drawn=Sampled.over(drawn_words, max_num_seqs),
        )

    @property
    def max_num_seqs(self) -> int:
        """R: also the number of the row that is nobody's."""
        return self.sampled.shape[0] - 1

    def set_blocks(self, places: Tensor, blocks: Tensor) -> None:
        """places: int64 [n], row * max_blocks + column, each once; blocks: int64 [n], what belongs there."""
        self.block_table.view(-1).index_copy_(0, places, blocks.int())
