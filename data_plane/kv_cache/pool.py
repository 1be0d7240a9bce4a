"""The tensors of the paged KV cache, and how many blocks a number of bytes gives.

Knows nothing of sequences, prefixes or who owns a block. Layers of equal shape share one
allocation. Invariant: a block cleared at its sequence's first token in it holds only finite
numbers that this sequence wrote, or zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_plane.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class KvShape:
    """K and V of one layer, a token."""

    num_heads: int
    k_head_dim: int
    v_head_dim: int

    @property
    def token_elements(self) -> int:
        """Numbers a token takes."""
        return self.num_heads * (self.k_head_dim + self.v_head_dim)


def num_blocks_for(
    shapes: Sequence[KvShape], dtype: torch.dtype, block_size: int, kv_cache_bytes: int
) -> int:
    """Blocks that fit into `kv_cache_bytes`; refuse a size that holds not even one."""
    block_bytes = sum(shape.token_elements for shape in shapes) * block_size * dtype.itemsize
    num_blocks = kv_cache_bytes // block_bytes
    if num_blocks < 1:
        raise InvalidRequest(
            "kv_cache_bytes", kv_cache_bytes, f"must be at least one block ({block_bytes} bytes)"
        )
    return num_blocks


class KvPool:
    """K and V of every layer, each [num_blocks, block_size, num_heads, head_dim]."""

    def __init__(
        self,
        shapes: Sequence[KvShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        # One allocation for all layers of a shape: [layers, num_blocks, block_size, heads, head_dim].
        self._storage: dict[tuple[int, int], Tensor] = {}
        counts: dict[tuple[int, int], int] = {}
        places: list[list[tuple[tuple[int, int], int]]] = []
        for shape in shapes:
            keys = [(shape.num_heads, shape.k_head_dim), (shape.num_heads, shape.v_head_dim)]
            places.append([])
            for key in keys:
                places[-1].append((key, counts.get(key, 0)))
                counts[key] = counts.get(key, 0) + 1
        for (heads, head_dim), count in counts.items():
            # Pages of zeros that no sequence has touched cost no memory on Linux.
            size = (count, num_blocks, block_size, heads, head_dim)
            self._storage[heads, head_dim] = torch.zeros(size, dtype=dtype, device=device)
        self.layers: tuple[tuple[Tensor, Tensor], ...] = tuple(
            (self._storage[k][k_index], self._storage[v][v_index]) for (k, k_index), (v, v_index) in places
        )

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return sum(storage.nbytes for storage in self._storage.values())

    def clear(self, blocks: Tensor) -> None:
        """Zero blocks, [n] int64 beside the pool, that a sequence begins to fill.

        Attention reads whole blocks with weight 0 past a sequence's end, and 0 x NaN is NaN: what an
        earlier sequence of a broken adapter left behind must not reach this one.
        """
        for storage in self._storage.values():
            storage.index_fill_(1, blocks, 0)
