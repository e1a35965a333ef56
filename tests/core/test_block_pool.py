"""BlockPool: what is held, what is free, and what can still be found."""

from __future__ import annotations

import pytest

from octavo.core.block_pool import NULL_BLOCK, BlockPool


def test_the_null_block_is_never_handed_out():
    pool = BlockPool(5)
    assert NULL_BLOCK not in pool.allocate(4)
    assert pool.num_free == 0


def test_allocating_more_than_is_free_is_our_bug():
    with pytest.raises(AssertionError, match="5 blocks wanted, 4 free"):
        BlockPool(5).allocate(5)


def test_releasing_twice_is_our_bug():
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(blocks)


def test_a_free_block_is_found_until_it_is_reused():
    pool = BlockPool(3)
    block = pool.allocate(1)[0]
    pool.publish(block, b"x")
    pool.release([block])
    assert pool.find(b"x") == block
    pool.allocate(2)
    assert pool.find(b"x") is None


def test_blocks_without_content_go_first_then_the_least_recently_released():
    pool = BlockPool(6)
    a, b, c, d, e = pool.allocate(5)
    for block, name in ((a, b"a"), (b, b"b"), (c, b"c")):
        pool.publish(block, name)
    pool.release([b])
    pool.release([a])
    pool.release([d, c])
    pool.release([e])
    assert pool.allocate(5) == [e, d, b, a, c]
    pool.check_invariants()


def test_sharing_a_free_block_takes_it_off_the_free_list():
    pool = BlockPool(4)
    block = pool.allocate(1)[0]
    pool.publish(block, b"x")
    pool.release([block])
    pool.share(block)
    pool.share(block)
    assert pool.ref_count(block) == 2
    assert block not in pool.allocate(2)
    pool.release([block, block])
    assert pool.num_free == 1
    pool.check_invariants()


def test_the_first_block_with_a_content_stays_the_one_that_is_found():
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    pool.publish(first, b"x")
    pool.publish(second, b"x")
    assert pool.find(b"x") == first
    pool.forget(second)
    assert pool.find(b"x") == first
    pool.forget(first)
    assert pool.find(b"x") is None
    pool.check_invariants()
