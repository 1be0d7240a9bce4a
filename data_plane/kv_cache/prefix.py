"""Prefix index: which block holds the keys and values of which token prefix.

Owns the two-way map between prefix keys and blocks; knows nothing of reference counts. A key is
chained over the digest of the weights, then block after block of tokens, so equal keys mean
equal weights and equal tokens from the first one on: a block is never found under another digest.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 32


def root_key(digest: str) -> bytes:
    """Start of the chain of every prefix computed with these weights."""
    return blake2b(digest.encode(), digest_size=KEY_BYTES).digest()


def chain_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of one full block behind the prefix `parent`."""
    # A cryptographic hash: with a weak one a tenant could build a prompt that hits another's block.
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=KEY_BYTES).digest()


class PrefixIndex:
    """Full, computed blocks by prefix key."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    def find(self, key: bytes) -> int | None:
        """The block that holds the prefix."""
        return self._block_of.get(key)

    def publish(self, key: bytes, block: int) -> None:
        """Offer a block to later sequences; the first one published under a key stays."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, block: int) -> None:
        """The block's content is about to be overwritten."""
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]

    def check(self) -> None:
        """Raise AssertionError unless both directions of the map agree."""
        assert {block: key for key, block in self._block_of.items()} == self._key_of
