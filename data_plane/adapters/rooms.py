"""Where an adapter's rank rows lie in one flat buffer: every module that it changes, one after another.

    A  [rank, num_slices, in_features]     B  [rank, out_features]

Pure: ranks and layout in, places out, in numbers from the buffer's beginning. Rows past a slice's own rank
are zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from data_plane.adapters.layout import AdapterLayout, FusedModule, pages_for

Ranks = tuple[tuple[int, ...], ...]  # [module][slice]; 0 where the adapter has nothing


@dataclass(frozen=True, slots=True)
class Room:
    """One module's place."""

    begin: int
    rank: int  # the largest of its slices
    module: FusedModule
    ranks: tuple[int, ...]  # of each slice

    @property
    def row_size(self) -> int:
        """Numbers in a row of A."""
        return len(self.ranks) * self.module.in_features

    @property
    def begin_b(self) -> int:
        """Where A ends and B begins."""
        return self.begin + self.rank * self.row_size

    @property
    def end(self) -> int:
        """Where B ends."""
        return self.begin_b + self.rank * self.module.out_features

    def a(self, flat: Tensor) -> Tensor:
        """A view of A, [rank, num_slices, in_features]."""
        width = self.module.in_features
        shape = (self.rank, len(self.ranks), width)
        return flat.as_strided(shape, (self.row_size, width, 1), flat.storage_offset() + self.begin)

    def b(self, flat: Tensor) -> Tensor:
        """A view of B, [rank, out_features]."""
        width = self.module.out_features
        return flat.as_strided((self.rank, width), (width, 1), flat.storage_offset() + self.begin_b)


@dataclass(frozen=True, slots=True)
class Rooms:
    """All of an adapter's places."""

    rooms: tuple[Room | None, ...]  # by module of the layout; None: unchanged
    ranks: Ranks
    num_elements: int
    rank: int  # the largest

    @property
    def num_pages(self) -> int:
        """Pages of the rank pool for these rows; one at least, because a slot is known by its pages."""
        return max(1, pages_for(self.rank))

    def clear(self, flat: Tensor) -> None:
        """Zero the modules in which slices have fewer rows than others."""
        for room in self.rooms:
            if room is not None and min(room.ranks) < room.rank:
                flat[room.begin : room.end].zero_()


def rooms_of(layout: AdapterLayout, rank_of: Callable[[str], int]) -> Rooms:
    """Places for the ranks of projections by name; 0: unchanged."""
    ranks = tuple(tuple(rank_of(part.name) for part in module.projections) for module in layout.modules)
    return _rooms(layout.modules, ranks)


def _rooms(modules: Sequence[FusedModule], ranks: Ranks) -> Rooms:
    rooms: list[Room | None] = []
    end = 0
    for module, of_slices in zip(modules, ranks, strict=True):
        room = Room(end, max(of_slices), module, of_slices) if any(of_slices) else None
        rooms.append(room)
        end = room.end if room else end
    return Rooms(tuple(rooms), ranks, end, max(map(max, ranks), default=0))
