"""Copies of an adapter's matrices into the rank pool's layout, in plain PyTorch.

    straight  out[i, j] = source[i, j]
    turned    out[j, i] = source[i, j] · scaling · scales[i]     multiplied in fp32

What is copied from where to where is prepared once, for all adapters of the same shapes; the memory is given
when it is run. Knows nothing of adapters or pools. Whoever copies computes on the calling thread.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[
    np.uint8
]  # [num_bytes], perhaps memory that may only be read, which is no tensor of torch's
Scales = Mapping[int, Tensor]  # of turned copies, by their number: [rows] fp32; absent: 1
NO_SCALES: Scales = {}


@dataclass(frozen=True, slots=True)
class MatrixCopy:
    """One matrix to copy, by its place in memory that is given later; no numbers of two may overlap."""

    source: int  # which of the sources
    begin: int  # bytes from that source's beginning, aligned or not
    dtype: torch.dtype  # any floating one
    shape: tuple[int, int]  # rows and columns, rows without gaps
    out: int  # numbers from the beginning of `out`
    out_stride: int  # numbers from one row of `out` to the next
    turned: bool = False  # `out` is [columns, rows]
    scaling: float = 1.0  # of a turned matrix

    @property
    def end(self) -> int:
        """Bytes from the source's beginning to behind the matrix."""
        return self.begin + self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def out_shape(self) -> tuple[int, int]:
        """Rows and columns in `out`."""
        return self.shape[::-1] if self.turned else self.shape

    @property
    def out_end(self) -> int:
        """Numbers from the beginning of `out` to behind the copy."""
        rows, columns = self.out_shape
        return self.out + (rows - 1) * self.out_stride + columns if rows and columns else self.out


class Copies(Protocol):
    """Prepared copies. Immutable; any thread, several at once."""

    def run(self, sources: Sequence[Bytes], out: Tensor, scales: Scales = NO_SCALES) -> int | None:
        """Make the copies in order; the first that wrote a number that is not finite, None when all are.

        out  flat, of the dtype that was prepared for
        Raise ValueError when a copy lies outside of them.
        """


class MatrixCopier(Protocol):
    """Whichever way matrices are copied: the numbers are the same."""

    def prepare(self, copies: Sequence[MatrixCopy], dtype: torch.dtype) -> Copies:
        """Copies to run later, into numbers of `dtype`."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much memory some copies reach over."""

    source_bytes: tuple[int, ...]
    out_numbers: int
    dtype: torch.dtype

    def check(self, sources: Sequence[Bytes], out: Tensor) -> None:
        """Raise ValueError unless the memory has what the copies reach."""
        have = [source.nbytes for source in sources]
        if len(have) < len(self.source_bytes) or any(map(int.__lt__, have, self.source_bytes)):
            raise ValueError(f"sources: {have} bytes, at least {list(self.source_bytes)} are read")
        if out.dtype is not self.dtype or out.numel() < self.out_numbers or not out.is_contiguous():
            raise ValueError(
                f"out: {out.numel()} of {out.dtype}, {self.out_numbers} of {self.dtype} are written"
            )


def tensor_at(source: Bytes, begin: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A copy of the numbers that begin there, aligned or not."""
    tensor = torch.empty(tuple(shape), dtype=dtype)
    tensor.view(-1).view(torch.uint8).numpy()[:] = source[begin : begin + tensor.nbytes]
    return tensor


def extent_of(copies: Sequence[MatrixCopy], dtype: torch.dtype) -> Extent:
    """Over all of these."""
    ends = [0] * (1 + max((copy.source for copy in copies), default=-1))
    for copy in copies:
        ends[copy.source] = max(ends[copy.source], copy.end)
    return Extent(tuple(ends), max((copy.out_end for copy in copies), default=0), dtype)


class TorchCopier:
    """Implements `MatrixCopier` in plain PyTorch."""

    def prepare(self, copies: Sequence[MatrixCopy], dtype: torch.dtype) -> Copies:
        """See `MatrixCopier.prepare`."""
        return _TorchCopies(tuple(copies), extent_of(copies, dtype))


@dataclass(frozen=True, slots=True)
class _TorchCopies:
    copies: tuple[MatrixCopy, ...]
    extent: Extent

    def run(self, sources: Sequence[Bytes], out: Tensor, scales: Scales = NO_SCALES) -> int | None:
        """See `Copies.run`."""
        self.extent.check(sources, out)
        for i, copy in enumerate(self.copies):
            if not _copied(copy, sources[copy.source], out, scales.get(i)):
                return i
        return None


def _copied(copy: MatrixCopy, source: Bytes, out: Tensor, scales: Tensor | None) -> bool:
    matrix = tensor_at(source, copy.begin, copy.dtype, copy.shape)
    if copy.turned:
        # In one piece: torch's own transposing copy beats tiles of 64 to 512 rows made here (100 against
        # 120-600 µs for [4096, 16]), whose calls cost more than the cache misses they save.
        matrix = matrix.float() * copy.scaling
        matrix = (matrix if scales is None else matrix * scales[:, None]).t()
    place = out.as_strided(copy.out_shape, (copy.out_stride, 1), out.storage_offset() + copy.out)
    place.copy_(matrix)
    # Shows NaN and infinity both, and reads the numbers once.
    return all(math.isfinite(bound) for bound in place.aminmax())
