"""AttentionMetadata of one step from the rows' tables, for runners that make it anew for every step."""

from __future__ import annotations

import numpy as np
import torch

from octavo.kernels.paged_attention import AttentionMetadata
from octavo.runner.input_batch import InputBatch, StepArrays


def step_metadata(batch: InputBatch, arrays: StepArrays, device: torch.device) -> AttentionMetadata:
    """Where the tokens of a step lie, on `device`. The step's deltas have been applied to `batch`."""
    max_seq_len = int(arrays.seq_lens.max())
    max_blocks = -(-max_seq_len // batch.block_size)
    return AttentionMetadata(
        cu_seqlens_q=torch.from_numpy(arrays.cu_seqlens_q.astype(np.int32)).to(device),
        seq_lens=torch.from_numpy(arrays.seq_lens.astype(np.int32)).to(device),
        block_table=torch.from_numpy(batch.block_table[arrays.rows, :max_blocks]).to(device),
        slot_mapping=torch.from_numpy(arrays.slot_mapping).to(device),
        max_seqlen_q=int(arrays.num_scheduled_tokens.max()),
        max_seq_len=max_seq_len,
    )
