"""Weights: the tensors of one adapter by their names, where each one lies, and the memory that holds them.

What is decided from names, kinds and places is decided before any number is read, and holds for every
adapter with the same `key`. Knows nothing of what a name means.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.cpu.matrices import Bytes, tensor_at


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor, in rows without gaps."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    source: int  # which of the sources
    begin: int  # bytes from that source's beginning, aligned or not

    def read(self, sources: Sequence[Bytes]) -> Tensor:
        """A copy of it."""
        return tensor_at(sources[self.source], self.begin, self.dtype, self.shape)


class Weights(Protocol):
    """The tensors of one adapter."""

    @property
    def key(self) -> Hashable:
        """Equal only where every tensor has the same name, kind and place."""

    def stored(self) -> Mapping[str, StoredTensor]:
        """Every tensor by its name; raise AdapterRefused when that cannot be told."""

    def sources(self) -> Sequence[Bytes]:
        """The memory that holds them, not copied where it need not be."""


@dataclass(frozen=True, slots=True)
class GivenTensors:
    """Implements `Weights` for tensors that are there, each one a source of its own."""

    tensors: Mapping[str, Tensor]

    @property
    def key(self) -> Hashable:
        """See Weights."""
        return tuple(self.stored().items())

    def stored(self) -> Mapping[str, StoredTensor]:
        """See Weights."""
        return {
            name: StoredTensor(tensor.dtype, tuple(tensor.shape), i, 0)
            for i, (name, tensor) in enumerate(self.tensors.items())
        }

    def sources(self) -> Sequence[Bytes]:
        """See Weights."""
        return [_bytes_of(tensor) for tensor in self.tensors.values()]


def _bytes_of(tensor: Tensor) -> Bytes:
    plain = tensor.detach().cpu().resolve_neg().contiguous()
    found: Bytes = plain.reshape(-1).view(torch.uint8).numpy()
    return found
