"""Blocks of a module's output columns: each within one slice, so that one launch serves all.

blocks  [num_blocks, 4]  int32: slice, first column, end of the slice's columns, unused
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

MAX_ALIGN = 64  # columns; more than a 16-byte access needs helps nobody


@dataclass(frozen=True, slots=True)
class ColumnBlocks:
    """What expand's first grid dimension runs over."""

    blocks: Tensor
    align: int  # columns; divides where every slice begins and ends
    even: bool  # no block passes its slice's end

    @property
    def num_blocks(self) -> int:
        """Programs a tile."""
        return self.blocks.shape[0]


def cut_columns(columns: Sequence[slice], block_n: int, device: torch.device) -> ColumnBlocks:
    """Cut the slices' columns into blocks of `block_n`; the last of a slice may be shorter."""
    blocks = [
        (index, begin, piece.stop, 0)
        for index, piece in enumerate(columns)
        for begin in range(piece.start, piece.stop, block_n)
    ]
    align = gcd(MAX_ALIGN, block_n, *(edge for piece in columns for edge in (piece.start, piece.stop)))
    even = all((piece.stop - piece.start) % block_n == 0 for piece in columns)
    return ColumnBlocks(torch.tensor(blocks, dtype=torch.int32, device=device), align, even)
