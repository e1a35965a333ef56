"""Ragged batches for kernel tests: sequences with shuffled block tables over a cache poisoned with NaN."""

from dataclasses import dataclass

import torch

from octavo.kernels.kv_layout import write_slots
from octavo.kernels.paged_attention import AttentionMetadata


@dataclass
class Paged:
    query: torch.Tensor
    kv_cache: torch.Tensor
    metadata: AttentionMetadata


def block_tables(seq_lens, block_size, generator, num_spare=3):
    """Shuffled blocks, never block 0; entries past the end point far outside the cache."""
    counts = [-(-length // block_size) for length in seq_lens]
    num_blocks = sum(counts) + num_spare + 1
    shuffled = (torch.randperm(num_blocks - 1, generator=generator) + 1).int()
    table = torch.full((len(seq_lens), max(counts) + 1), 10**6, dtype=torch.int32)
    for row, count in enumerate(counts):
        table[row, :count] = shuffled[sum(counts[:row]) : sum(counts[:row]) + count]
    return table, num_blocks


def slots_of(table_row, positions, block_size):
    return table_row.long()[positions // block_size] * block_size + positions % block_size


def metadata_of(query_lens, seq_lens, table, block_size):
    slots = [
        slots_of(table[row], torch.arange(length - num_queries, length), block_size)
        for row, (num_queries, length) in enumerate(zip(query_lens, seq_lens, strict=True))
    ]
    return AttentionMetadata(
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_table=table,
        slot_mapping=torch.cat(slots),
        max_seqlen_q=max(query_lens),
        max_seq_len=max(seq_lens),
    )


def paged_batch(sequences, query_lens, block_size, placement_seed=0):
    """sequences: one (query [q, H, D], keys [n, Hkv, D], values) each; the last query_lens[i] queries are taken."""
    seq_lens = [keys.shape[0] for _, keys, _ in sequences]
    generator = torch.Generator().manual_seed(placement_seed)
    table, num_blocks = block_tables(seq_lens, block_size, generator)
    _, num_kv_heads, head_dim = sequences[0][1].shape
    dtype = sequences[0][1].dtype
    kv_cache = torch.full((num_blocks, 2, num_kv_heads, block_size, head_dim), float("nan"), dtype=dtype)
    for row, (_, keys, values) in enumerate(sequences):
        write_slots(kv_cache, slots_of(table[row], torch.arange(len(keys)), block_size), keys, values)
    query = torch.cat([query[len(query) - n :] for (query, _, _), n in zip(sequences, query_lens, strict=True)])
    return Paged(query, kv_cache, metadata_of(query_lens, seq_lens, table, block_size))


def random_sequence(length, heads, head_dim, dtype, seed):
    """Queries, keys and values of a whole sequence. heads: (num_heads, num_kv_heads)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, heads[0], head_dim), (length, heads[1], head_dim), (length, heads[1], head_dim)]
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
