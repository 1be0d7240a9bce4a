"""Copies of an adapter's matrices into the rank pool's layout, in plain PyTorch.

    straight  out[i, j] = source[i, j]
    turned    out[j, i] = source[i, j] · scaling · scales[i]     multiplied in fp32

Knows nothing of adapters or pools. Whoever copies computes on the calling thread.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class MatrixCopy:
    """One matrix to copy, and where it goes; no numbers of the two may overlap."""

    source: Tensor  # [rows, columns], any floating dtype
    out: Tensor  # [rows, columns], turned [columns, rows]; its rows without gaps
    turned: bool = False
    scaling: float = 1.0  # of a turned matrix
    scales: Tensor | None = None  # [rows] fp32, of a turned matrix


class MatrixCopier(Protocol):
    """Whichever way matrices are copied: the numbers are the same."""

    def copy(self, copies: Sequence[MatrixCopy]) -> int | None:
        """Make the copies in order; the first that wrote a number that is not finite, None when all are."""


class TorchCopier:
    """Implements `MatrixCopier` in plain PyTorch."""

    def copy(self, copies: Sequence[MatrixCopy]) -> int | None:
        """See `MatrixCopier.copy`."""
        return next((i for i, copy in enumerate(copies) if not _copied(copy)), None)


def _copied(copy: MatrixCopy) -> bool:
    source = copy.source
    if copy.turned:
        # In one piece: torch's own transposing copy beats tiles of 64 to 512 rows made here (100 against
        # 120-600 µs for [4096, 16]), whose calls cost more than the cache misses they save.
        source = source.float() * copy.scaling
        source = (source if copy.scales is None else source * copy.scales[:, None]).t()
    copy.out.copy_(source)
    # Shows NaN and infinity both, and reads the numbers once.
    return all(math.isfinite(bound) for bound in copy.out.aminmax())
