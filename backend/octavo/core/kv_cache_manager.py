"""KVCacheManager: the block tables of sequences over the block pool, and the prefix cache.

A block is findable once it is full and its step has succeeded, under SHA-256 of (the hash of the block before it,
its token ids as int32). The chain starts from a root that tells models, adapters and cache salts apart.
"""

from __future__ import annotations

import hashlib
from array import array

from octavo.core.block_pool import BlockHash, BlockPool
from octavo.core.sequence import Sequence


class KVCacheManager:
    """Owns the pool. Sequences' block tables are changed here only.

    `num_queried_tokens` and `num_hit_tokens` count what was looked up in the prefix cache and what it gave.
    """

    def __init__(self, pool: BlockPool, block_size: int, enable_prefix_caching: bool, model_digest: str) -> None:
        self.pool = pool
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self._model_digest = model_digest
        self._roots: dict[str, BlockHash] = {}

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, seq: Sequence) -> list[int]:
        """The blocks that hold the longest known prefix of the sequence, at least one token left to compute.

        Nothing is taken yet: see `adopt`.
        """
        if not self.enable_prefix_caching or seq.wants_prompt_logprobs:
            return []
        found: list[int] = []
        for index in range((len(seq.token_ids) - 1) // self.block_size):
            block = self.pool.find(self._hash_of(seq, index))
            if block is None:
                break
            found.append(block)
        return found

    def num_common_blocks(self, seq: Sequence, other: Sequence, begin: int) -> int:
        """How many blocks from `begin` on will hold the same for both, at least one token of `seq` left to compute."""
        end = min(len(seq.token_ids) - 1, len(other.token_ids)) // self.block_size
        for index in range(begin, end):
            if self._hash_of(seq, index) != self._hash_of(other, index):
                return index - begin
        return max(end - begin, 0)

    def num_free_without(self, blocks: list[int]) -> int:
        """Free blocks that would be left after sharing `blocks`, some of which may be free themselves."""
        return self.pool.num_free - sum(self.pool.ref_count(block) == 0 for block in blocks)

    def adopt(self, seq: Sequence, blocks: list[int]) -> None:
        """The sequence, which has no block yet, starts with `blocks`: full, computed and published."""
        assert not seq.block_table
        for block in blocks:
            self.pool.share(block)
        seq.block_table = list(blocks)
        seq.num_published_blocks = len(blocks)
        seq.num_computed_tokens = len(blocks) * self.block_size

    def fork(self, seq: Sequence, source: Sequence, num_tokens: int) -> tuple[int, int] | None:
        """The sequence starts with the first `num_tokens` tokens of `source`, by reference.

        A partly filled block is copied, since both will write to it: returns (from, to) for the device, or None.
        The caller has checked that one block is free.
        """
        assert not seq.block_table
        num_full, num_left = divmod(num_tokens, self.block_size)
        for block in source.block_table[:num_full]:
            self.pool.share(block)
        seq.block_table = source.block_table[:num_full]
        seq.block_hashes = source.block_hashes[:num_full]
        seq.num_published_blocks = min(num_full, source.num_published_blocks)
        seq.num_computed_tokens = num_tokens
        if not num_left:
            return None
        copy = self.pool.allocate(1)[0]
        seq.block_table.append(copy)
        return source.block_table[num_full], copy

    def extend(self, seq: Sequence, num_tokens: int) -> list[int] | None:
        """Makes room for `num_tokens` tokens in all. Returns the new blocks, or None when too few are free."""
        missing = self.num_blocks_for(num_tokens) - len(seq.block_table)
        if missing <= 0:
            return []
        if missing > self.pool.num_free:
            return None
        new_blocks = self.pool.allocate(missing)
        seq.block_table += new_blocks
        return new_blocks

    def publish(self, seq: Sequence, num_tokens: int) -> None:
        """The KV of the first `num_tokens` tokens has been computed: makes the full blocks among them findable."""
        num_full = num_tokens // self.block_size
        if not self.enable_prefix_caching:
            return
        for index in range(seq.num_published_blocks, num_full):
            self.pool.publish(seq.block_table[index], self._hash_of(seq, index))
        seq.num_published_blocks = max(seq.num_published_blocks, num_full)

    def forget(self, seq: Sequence) -> None:
        """The sequence's KV turned out to be wrong: nobody finds its blocks in the prefix cache from now on."""
        for block in seq.block_table:
            self.pool.forget(block)

    def detach(self, seq: Sequence) -> list[int]:
        """Takes all blocks from the sequence. They stay held until the caller releases them to the pool.

        Last block first: the end of a prefix is reused before its beginning.
        """
        blocks = seq.block_table[::-1]
        seq.block_table = []
        seq.num_published_blocks = 0
        seq.num_computed_tokens = 0
        return blocks

    def count_lookup(self, num_queried: int, num_hit: int) -> None:
        """Adds one lookup to the statistics, in tokens."""
        self.num_queried_tokens += num_queried
        self.num_hit_tokens += num_hit

    def _hash_of(self, seq: Sequence, index: int) -> BlockHash:
        hashes = seq.block_hashes
        while len(hashes) <= index:
            start = len(hashes) * self.block_size
            parent = hashes[-1] if hashes else self._root(seq.request.cache_salt)
            token_ids = array("i", seq.token_ids[start : start + self.block_size])
            assert len(token_ids) == self.block_size, "only full blocks are hashed"
            hashes.append(hashlib.sha256(parent + token_ids.tobytes()).digest())
        return hashes[index]

    def _root(self, cache_salt: str) -> BlockHash:
        root = self._roots.get(cache_salt)
        if root is None:
            if len(self._roots) >= 4096:  # salts come from clients: what they can make us remember is bounded
                self._roots.clear()
            # Lengths first, so that no two different pairs of texts make the same bytes.
            texts = [self._model_digest.encode(), cache_salt.encode()]
            root = hashlib.sha256(b"".join(len(text).to_bytes(8, "little") + text for text in texts)).digest()
            self._roots[cache_salt] = root
        return root
