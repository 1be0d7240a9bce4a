"""An adapter's weights in the rank pool's layout, in host memory.

    A  [rank, num_slices, in_features]     B  [rank, out_features], transposed, scaling folded in

of every module that the adapter changes; rank is the largest of the module's slices, and rows
past a slice's own rank are zero. Scaling, and DoRA's scale of each column, are multiplied once, in
fp32, before the cast. What is no rank row is in `side`.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.rooms import Ranks, Rooms, rooms_of
from kernels.lora.side import SlotSide


@dataclass(frozen=True, slots=True)
class PackedModule:
    """One module's weights, views."""

    a: Tensor
    b: Tensor
    ranks: tuple[int, ...]  # of each slice; 0 where the adapter does not change it


@dataclass(frozen=True, slots=True)
class ProjectionWeights:
    """What one projection adds: y[t] += (x[t] Aᵀ) Bᵀ, scaling and DoRA's scale in B."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]


@dataclass(frozen=True)
class PackedLora:
    """Implements `PackedAdapter`. Immutable; shared by the CPU cache and the pool."""

    flat: Tensor  # all rank rows
    rooms: Rooms  # which are whose
    side: SlotSide | None = None

    @cached_property
    def modules(self) -> tuple[PackedModule | None, ...]:
        """By module of the layout; None: unchanged."""
        # Not made when packing: 256 views take 0.5 ms.
        return tuple(
            PackedModule(room.a(self.flat), room.b(self.flat), room.ranks) if room else None
            for room in self.rooms.rooms
        )

    @property
    def ranks(self) -> Ranks:
        """[module][slice]."""
        return self.rooms.ranks

    @property
    def rank(self) -> int:
        """Largest rank of any module, the ends too."""
        return max(self.rooms.rank, self.side.rank if self.side else 0)

    @property
    def num_bytes(self) -> int:
        """Host memory it takes."""
        return self.flat.nbytes + self.side_bytes

    @cached_property
    def side_bytes(self) -> int:
        """Memory that its slot takes beside the pages."""
        return self.side.num_bytes if self.side else 0

    @property
    def num_pages(self) -> int:
        """Pages of the rank pool it needs; one at least, because a slot is known by its pages."""
        return self.rooms.num_pages

    def weights_of(self, name: str, layout: AdapterLayout) -> ProjectionWeights | None:
        """Views of one projection's matrices; None where the adapter does not change it."""
        target = layout.targets[name]
        module, rank = self.modules[target.module], self.ranks[target.module][target.slice]
        if module is None or rank == 0:
            return None
        columns = layout.modules[target.module].columns[target.slice]
        return ProjectionWeights(module.a[:rank, target.slice], module.b[:rank, columns].t())

    def clone(self) -> "PackedLora":
        """A copy that shares no memory."""
        return PackedLora(self.flat.clone(), self.rooms, deepcopy(self.side))


def pack_zeros(layout: AdapterLayout, rank: int, dtype: torch.dtype) -> PackedLora:
    """An adapter of this rank on every projection that adds nothing."""
    rooms = rooms_of(layout, lambda name: rank)
    return PackedLora(torch.zeros(rooms.num_elements, dtype=dtype), rooms)
