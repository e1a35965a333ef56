"""Batches for attention kernels of a GPU: a cache in plain layout, NaN where no query may look, and what to expect."""

import torch


def random_sequence(length, heads, head_dim, dtype, seed=0):
    """Queries, keys, values of a whole sequence. heads: (num_heads, num_kv_heads)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, heads[0], head_dim), (length, heads[1], head_dim), (length, heads[1], head_dim)]
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def make_cache(sequences, query_lens, block_size=16, window=None, dtype=None, seed=0):
    """(cache, block table) of sequences in shuffled blocks. Table entries that nobody may read point far outside."""
    counts = [-(-len(keys) // block_size) for _, keys, _ in sequences]
    shuffled = (torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(seed)) + 1).int()
    table = torch.full((len(sequences), max(counts) + 1), 10**6, dtype=torch.int32)
    _, num_kv_heads, head_dim = sequences[0][1].shape
    dtype = dtype or sequences[0][1].dtype
    cache = torch.full((sum(counts) + 3, 2, num_kv_heads, block_size, head_dim), float("nan")).to(dtype)
    for row, (_, keys, values) in enumerate(sequences):
        table[row, : counts[row]] = shuffled[sum(counts[:row]) : sum(counts[:row]) + counts[row]]
        oldest = 0 if window is None else max(0, len(keys) - query_lens[row] - window + 1)
        table[row, : oldest // block_size] = 10**6
        positions = torch.arange(oldest, len(keys))
        blocks, slots = table[row].long()[positions // block_size], positions % block_size
        cache[blocks, 0, :, slots] = keys[oldest:].to(dtype)
        cache[blocks, 1, :, slots] = values[oldest:].to(dtype)
    return cache, table


def dense_attention(sequence, num_queries, spec):
    """Of the last queries, in fp64. What an FP8 cache holds stands in `sequence` as it was stored."""
    query, keys, values = (part.double() for part in sequence)
    length, group = len(keys), query.shape[1] // keys.shape[1]
    keys, values = (
        (keys * spec.k_scale).repeat_interleave(group, 1),
        (values * spec.v_scale).repeat_interleave(group, 1),
    )
    scores = torch.einsum("qhd,khd->hqk", query[length - num_queries :], keys) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    distance = torch.arange(length - num_queries, length)[:, None] - torch.arange(length)[None, :]
    hidden = ((distance < 0) & spec.causal) | (distance >= (spec.window or length))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).to(sequence[0].dtype)
