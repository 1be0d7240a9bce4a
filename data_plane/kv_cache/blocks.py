"""Blocks of the KV cache: which are used, by how many, and which is reused next.

Owns reference counts and the order of reuse; knows nothing of tokens, hashes or tensors. A block
is free exactly while nobody references it. A free block may still hold a published prefix, so
blocks whose content is worth keeping are reused last, the longest unused first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable


class BlockAllocator:
    """Reference-counted blocks 0 … num_blocks - 1."""

    def __init__(self, num_blocks: int) -> None:
        self._refs = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_blocks(self) -> int:
        """Blocks in the cache."""
        return len(self._refs)

    @property
    def num_free(self) -> int:
        """Blocks that nobody references, whether or not their content is kept."""
        return len(self._free)

    def allocate(self) -> int:
        """Take the free block that is reused next; callers look at `num_free` first."""
        block, _ = self._free.popitem(last=False)
        self._refs[block] = 1
        return block

    def acquire(self, block: int) -> None:
        """Reference a block once more; a free one is taken out of reuse."""
        if self._refs[block] == 0:
            del self._free[block]
        self._refs[block] += 1

    def release(self, block: int, *, keep: bool) -> None:
        """Drop one reference; the last makes the block free, reused last when its content is kept."""
        refs = self._refs[block] - 1
        if refs < 0:
            raise ValueError(f"block {block} is released more often than acquired")
        self._refs[block] = refs
        if refs == 0:
            self._free[block] = None
            if not keep:
                self._free.move_to_end(block, last=False)

    def check(self, tables: Iterable[tuple[int, ...]]) -> None:
        """Raise AssertionError unless the counts are exactly those of the tables in use."""
        expected = Counter(block for table in tables for block in table)
        for block, refs in enumerate(self._refs):
            assert refs == expected[block], f"block {block}: {refs} references, {expected[block]} in tables"
            assert (refs == 0) == (block in self._free), (
                f"block {block}: {refs} references, free list differs"
            )
