import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.kv_cache.blocks import BlockAllocator


def test_a_shared_block_is_free_only_after_its_last_release():
    blocks = BlockAllocator(1)
    block = blocks.allocate()
    blocks.acquire(block)
    blocks.release(block, keep=False)
    assert blocks.num_free == 0
    blocks.release(block, keep=False)
    assert blocks.num_free == 1


def test_kept_blocks_are_reused_last_and_the_longest_unused_of_them_first():
    blocks = BlockAllocator(4)
    a, b, c, d = (blocks.allocate() for _ in range(4))
    for block, keep in ((a, True), (b, False), (c, True), (d, False)):
        blocks.release(block, keep=keep)
    assert [blocks.allocate() for _ in range(4)] == [d, b, a, c]


def test_a_block_released_twice_is_an_error():
    blocks = BlockAllocator(2)
    block = blocks.allocate()
    blocks.release(block, keep=True)
    with pytest.raises(ValueError, match=f"block {block}"):
        blocks.release(block, keep=True)


def test_the_check_sees_a_lost_reference():
    blocks = BlockAllocator(2)
    block = blocks.allocate()
    blocks.check([(block,)])
    with pytest.raises(AssertionError):
        blocks.check([])


@given(st.lists(st.tuples(st.sampled_from("aqr"), st.integers(0, 7), st.booleans()), max_size=60))
def test_counts_and_free_list_hold_under_any_sequence(operations):
    blocks = BlockAllocator(8)
    owners: list[int] = []
    for kind, index, keep in operations:
        if kind == "a" and blocks.num_free:
            owners.append(blocks.allocate())
        elif kind == "q":
            blocks.acquire(index)
            owners.append(index)
        elif kind == "r" and owners:
            blocks.release(owners.pop(index % len(owners)), keep=keep)
        blocks.check([(block,) for block in owners])
