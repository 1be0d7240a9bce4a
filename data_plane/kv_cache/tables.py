"""Block tables: the KV-cache blocks of each sequence, shared where prefixes are equal.

Joins the allocator and the prefix index; knows nothing of requests. A table references each of its
blocks exactly once. Shared blocks are full and never written again: a sequence that shares a
prefix computes its next token into a block of its own.
"""

from collections.abc import Sequence

from data_plane.kv_cache.blocks import BlockAllocator
from data_plane.kv_cache.prefix import PrefixIndex, chain_key, root_key


class BlockTable:
    """The blocks of one sequence, in order."""

    __slots__ = ("blocks", "keys", "sealed")

    def __init__(self, keys: list[bytes]) -> None:
        self.blocks: tuple[int, ...] = ()  # a tuple, so that a plan can carry it without a copy
        self.keys = keys  # the root, then one key for each leading block that was published
        self.sealed = False

    @property
    def num_published(self) -> int:
        """Leading blocks that are full, computed and offered to other sequences."""
        return len(self.keys) - 1

    def seal(self) -> None:
        """Publish nothing more: what follows attends to keys of other weights."""
        self.sealed = True


class BlockTables:
    """All tables of a worker over one pool of blocks."""

    def __init__(self, num_blocks: int, block_size: int, *, share_prefixes: bool = True) -> None:
        self.block_size = block_size
        self._blocks = BlockAllocator(num_blocks)
        self._index = PrefixIndex()
        self._share = share_prefixes
        self._open: set[BlockTable] = set()

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self._blocks.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that no sequence uses."""
        return self._blocks.num_free

    def open(self, digest: str, token_ids: Sequence[int]) -> BlockTable | None:
        """A table that covers the tokens, its published prefix shared; None when blocks are lacking.

        `num_published * block_size` tokens of it are computed already. At least the last token is
        always left to compute, since its logits are needed.
        """
        table = BlockTable([root_key(digest)])
        self._open.add(table)
        if self._share:
            self._match(table, token_ids)
        if self.grow(table, len(token_ids)):
            return table
        self.close(table)
        return None

    def fork(self, table: BlockTable, num_shared: int) -> BlockTable:
        """A second table that shares the first `num_shared` blocks, all full and computed."""
        twin = BlockTable(table.keys[: num_shared + 1])
        twin.blocks = table.blocks[:num_shared]
        # Without the keys of all shared blocks the chain cannot be continued behind them.
        twin.sealed = table.sealed or twin.num_published < num_shared
        for block in twin.blocks:
            self._blocks.acquire(block)
        self._open.add(twin)
        return twin

    def grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Cover so many tokens; False, and nothing changed, when blocks are lacking."""
        missing = -(-num_tokens // self.block_size) - len(table.blocks)
        if missing <= 0:
            return True
        if missing > self._blocks.num_free:
            return False
        table.blocks += tuple(self._allocate() for _ in range(missing))
        return True

    def publish(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Offer every block that is full and computed to sequences with the same prefix."""
        size = self.block_size
        if table.sealed or num_computed < len(table.keys) * size:
            return
        for number in range(table.num_published, num_computed // size):
            key = chain_key(table.keys[-1], token_ids[number * size : (number + 1) * size])
            table.keys.append(key)
            if self._share:
                self._index.publish(key, table.blocks[number])

    def close(self, table: BlockTable) -> None:
        """Give every block back; published ones stay findable until they are reused."""
        self._open.remove(table)
        # Last first: the tail of a prefix is worth less than its beginning, so it is reused earlier.
        for block in reversed(table.blocks):
            self._blocks.release(block, keep=block in self._index)
        table.blocks = ()

    def check(self) -> None:
        """Raise AssertionError unless counts, free list and index agree with the open tables."""
        self._blocks.check(table.blocks for table in self._open)
        self._index.check()

    def _match(self, table: BlockTable, token_ids: Sequence[int]) -> None:
        size = self.block_size
        found: list[int] = []
        for number in range((len(token_ids) - 1) // size):
            key = chain_key(table.keys[-1], token_ids[number * size : (number + 1) * size])
            block = self._index.find(key)
            if block is None:
                break
            self._blocks.acquire(block)
            found.append(block)
            table.keys.append(key)
        table.blocks = tuple(found)

    def _allocate(self) -> int:
        block = self._blocks.allocate()
        self._index.forget(block)
        return block
