"""BlockPool: who holds which KV block, which are free, and which free ones can still be found by their content.

Every operation is O(1) a block. Knows neither sequences nor tokens; a hash is 32 opaque bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

NULL_BLOCK = 0
BlockHash = bytes


class BlockPool:
    """Owns the blocks 0 .. num_blocks - 1. Block 0 is the null block: padding writes there, nobody may hold it.

    Free blocks form a doubly linked list in the order in which they will be reused: blocks without content first, then
    the least recently released. A free block stays findable by its hash until it is reused.
    """

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 2, "a pool needs the null block and at least one more"
        self.num_blocks = num_blocks
        self.num_free = num_blocks - 1
        self._ref_count = [0] * num_blocks
        self._hash: list[BlockHash | None] = [None] * num_blocks
        self._block_of: dict[BlockHash, int] = {}
        # The list's ends meet in the null block, which is never free: no special case at either end.
        self._next = [(block + 1) % num_blocks for block in range(num_blocks)]
        self._prev = [(block - 1) % num_blocks for block in range(num_blocks)]

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds, the null block not counted."""
        return self.num_blocks - 1 - self.num_free

    def ref_count(self, block: int) -> int:
        """How many block tables hold `block`."""
        return self._ref_count[block]

    def allocate(self, count: int) -> list[int]:
        """Takes `count` free blocks, forgetting what they held. The caller has checked `num_free`."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        return [self._take_first() for _ in range(count)]

    def _take_first(self) -> int:
        block = self._next[NULL_BLOCK]
        self._unlink(block)
        self.forget(block)
        self._ref_count[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder of `block`, which may be free but still findable."""
        assert block != NULL_BLOCK
        if self._ref_count[block] == 0:
            self._unlink(block)
        self._ref_count[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder fewer of each block. A block that nobody holds becomes free, in the order given."""
        for block in blocks:
            count = self._ref_count[block] - 1
            assert count >= 0, f"block {block} was released more often than it was held"
            self._ref_count[block] = count
            if count == 0:
                # Before the null block is the far end: reused last. After it: reused first.
                self._link(block, NULL_BLOCK if self._hash[block] is not None else self._next[NULL_BLOCK])

    def find(self, block_hash: BlockHash) -> int | None:
        """The block with that content, held or free."""
        return self._block_of.get(block_hash)

    def publish(self, block: int, block_hash: BlockHash) -> None:
        """From now on `block` is found by its content. If another block has the same content, that one stays."""
        assert self._ref_count[block] > 0, f"block {block} was published by nobody"
        if self._hash[block] is None and block_hash not in self._block_of:
            self._hash[block] = block_hash
            self._block_of[block_hash] = block

    def forget(self, block: int) -> None:
        """`block` is no longer found by its content."""
        held = self._hash[block]
        if held is not None:
            del self._block_of[held]
            self._hash[block] = None

    def check_invariants(self) -> None:
        """Asserts that held and free blocks add up and that the free list and the hashes are whole. O(num_blocks)."""
        free = []
        block = self._next[NULL_BLOCK]
        while block != NULL_BLOCK:
            assert self._prev[self._next[block]] == block, f"free list broken at block {block}"
            free.append(block)
            block = self._next[block]
        assert len(free) == len(set(free)) == self.num_free, "free list and its length differ"
        unheld = {block for block in range(1, self.num_blocks) if self._ref_count[block] == 0}
        assert unheld == set(free), "a block is neither held nor free"
        assert self._ref_count[NULL_BLOCK] == 0, "somebody holds the null block"
        hashed = {held: block for block, held in enumerate(self._hash) if held is not None}
        assert hashed == self._block_of, "hashes and blocks differ"

    def _unlink(self, block: int) -> None:
        before, after = self._prev[block], self._next[block]
        self._next[before], self._prev[after] = after, before
        self.num_free -= 1

    def _link(self, block: int, after: int) -> None:
        before = self._prev[after]
        self._prev[block], self._next[block] = before, after
        self._next[before] = self._prev[after] = block
        self.num_free += 1
