"""Many small tensors in one buffer of bytes, so that one transfer moves them all.

Host logic alone: knows neither streams nor what the tensors mean. Every tensor begins at a multiple
of ALIGN_BYTES, because Triton compiles anew for a pointer that is less aligned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor's share of the buffer."""

    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where each tensor lies."""

    places: tuple[Place, ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "PackedLayout":
        """One behind the other, in this order."""
        places, begin = [], 0
        for tensor in tensors:
            end = begin + tensor.nbytes
            places.append(Place(begin, end, tensor.dtype, tuple(tensor.shape)))
            begin = -(-end // ALIGN_BYTES) * ALIGN_BYTES
        return cls(tuple(places), begin)

    def views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """The tensors as views of `buffer` [num_bytes] uint8, on any device."""
        return tuple(
            buffer[place.begin : place.end].view(place.dtype).view(place.shape) for place in self.places
        )

    def check(self, buffer: Tensor) -> None:
        """Refuse a buffer of another length: it was made for other shapes."""
        if buffer.shape != (self.num_bytes,):
            raise ValueError(
                f"buffer: {tuple(buffer.shape)} is not the {self.num_bytes} bytes of the tensors"
            )

    def fill(self, buffer: Tensor, tensors: Sequence[Tensor]) -> None:
        """Copy the tensors to their places."""
        for view, tensor in zip(self.views(buffer), tensors, strict=True):
            view.copy_(tensor)
