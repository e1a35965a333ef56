"""Where a key or value number lies inside a KV block. Everybody else moves whole blocks only.

A cache is [num_blocks, 2, num_kv_heads, block_size, head_dim]; that shape fixes sizes. On CPU the numbers inside one
head's [block_size, head_dim] are ordered for the kernels: keys as [head_dim / p, block_size, p] and values as
[block_size / p, head_dim, p], where p = 2 for 16-bit types (what a dot-product instruction eats at once), else 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels import language


def pair_sizes(kv_cache: Tensor) -> tuple[int, int]:
    """(p of keys, p of values). Values of an odd block size have no pairs."""
    if kv_cache.dtype == torch.float32:
        return 1, 1
    return 2, 2 if kv_cache.shape[3] % 2 == 0 else 1


def _is_plain(kv_cache: Tensor) -> bool:
    return language.on_gpu(kv_cache)


def key_slots(kv_cache: Tensor) -> Tensor:
    """View of the keys: [num_blocks, num_kv_heads, block_size, head_dim / p, p]; the last two are one key."""
    num_blocks, _, num_heads, block_size, head_dim = kv_cache.shape
    pair = pair_sizes(kv_cache)[0]
    keys = kv_cache[:, 0]
    if _is_plain(kv_cache):
        return keys.view(num_blocks, num_heads, block_size, head_dim // pair, pair)
    return keys.view(num_blocks, num_heads, head_dim // pair, block_size, pair).permute(0, 1, 3, 2, 4)


def value_slots(kv_cache: Tensor) -> Tensor:
    """View of the values: [num_blocks, num_kv_heads, block_size / p, p, head_dim]; dimensions 2 and 3 are the slot."""
    num_blocks, _, num_heads, block_size, head_dim = kv_cache.shape
    pair = pair_sizes(kv_cache)[1]
    values = kv_cache[:, 1]
    if _is_plain(kv_cache):
        return values.view(num_blocks, num_heads, block_size // pair, pair, head_dim)
    return values.view(num_blocks, num_heads, block_size // pair, head_dim, pair).permute(0, 1, 2, 4, 3)


def write_slots(kv_cache: Tensor, slot_mapping: Tensor, keys: Tensor, values: Tensor) -> None:
    """Writes keys and values [T, num_kv_heads, head_dim] into slots [T] int64 of `kv_cache`, in place."""
    block_size = kv_cache.shape[3]
    key_pair, value_pair = pair_sizes(kv_cache)
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    key_slots(kv_cache)[block, :, offset] = keys.reshape(*keys.shape[:2], -1, key_pair)
    value_slots(kv_cache)[block, :, offset // value_pair, offset % value_pair] = values


def read_blocks(kv_cache: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the named blocks [n], in order: two of [n * block_size, num_kv_heads, head_dim]."""
    keys = key_slots(kv_cache)[blocks].flatten(3, 4)
    values = value_slots(kv_cache)[blocks].flatten(2, 3)
    return keys.transpose(1, 2).flatten(0, 1), values.transpose(1, 2).flatten(0, 1)
