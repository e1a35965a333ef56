"""Steps that compute nothing of anybody's: rows that are nobody's on the null block, to warm up and to measure."""

from __future__ import annotations

import numpy as np

from octavo.runner.input_batch import StepArrays


def largest_null_step(max_num_batched_tokens: int, row: int, max_num_seqs: int, max_model_len: int) -> StepArrays:
    """As many tokens as a step may have, in as many rows as may draw: the first row has all that the others leave.

    row: that of the tables which is nobody's. Its blocks are the null block, and so is every slot.
    """
    num_rows = min(max_num_seqs, max_num_batched_tokens)
    counts = np.ones(num_rows, np.int64)
    left = max_num_batched_tokens - num_rows
    for index in range(num_rows):
        more = min(left, max_model_len - 1)
        counts[index] += more
        left -= more
    ends = np.cumsum(counts)
    return StepArrays(
        rows=np.full(num_rows, row),
        seq_lens=counts,
        cu_seqlens_q=np.concatenate(([0], ends)),
        token_ids=np.zeros(ends[-1], np.int64),
        positions=np.arange(ends[-1]) - np.repeat(ends - counts, counts),
        slot_mapping=np.zeros(ends[-1], np.int64),
        samples=np.ones(num_rows, np.bool_),
        pools=np.zeros(num_rows, np.bool_),
    )
