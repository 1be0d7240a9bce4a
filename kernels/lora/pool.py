"""The rank pool as kernels see it: two tensors a module and one table of slots for all modules.

    A  [num_rows, num_slices, in_features]   rank row first, so one page list serves every module
    B  [num_rows, out_features]              transposed, scaling folded in

Rows come in pages of PAGE_ROWS. A slot has a page list and, for every module and slice, its true
rank; rows past the true rank, and pages of no slot, may hold anything, NaN included: nobody
reads them. Knows nothing of files, adapters or who may use a slot.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.lora.segments import Segments
from kernels.lora.side import SlotSide

PAGE_ROWS = 8


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The rows of the pool that one slot computes with."""

    pages: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]  # [module][slice]; 0 where the adapter has nothing
    side: SlotSide | None = None  # what the adapter changes beside

    @property
    def side_bytes(self) -> int:
        """Memory beside the rows."""
        return self.side.num_bytes if self.side else 0

    @property
    def first_row(self) -> int | None:
        """Where the rows begin when the pages are consecutive, so that a view replaces a gather."""
        begin = self.pages[0]
        return begin * PAGE_ROWS if self.pages == tuple(range(begin, begin + len(self.pages))) else None

    def row_index(self, rank: int) -> Tensor:
        """The first `rank` rows, [rank] int64."""
        pages = torch.tensor(self.pages, dtype=torch.int64)
        return (pages[:, None] * PAGE_ROWS + torch.arange(PAGE_ROWS)).flatten()[:rank]


@dataclass(slots=True)
class SlotTable:
    """What every slot is bound to; one table for all modules, so that binding takes constant time."""

    rows: list[SlotRows | None]
    sided: set[int] = field(default_factory=set)  # slots whose adapter has a `side`
    columns_in_expand: bool = False  # whether `expand` itself scales and shifts columns
    version: int = 0  # grows when a slot is bound anew

    def bind(self, slot: int, rows: SlotRows | None) -> None:
        """From now on the slot computes with `rows`; None: with nothing."""
        self.rows[slot] = rows
        self.version += 1
        if rows is not None and rows.side is not None:
            self.sided.add(slot)
        else:
            self.sided.discard(slot)

    def changes_ends(self, segments: Segments) -> bool:
        """Whether an adapter of the step changes the embedding or the head."""
        if not self.sided:
            return False
        bound = (self.rows[tile.slot] for tile in segments.tiles)
        return any(rows.side.changes_ends for rows in bound if rows and rows.side)


@dataclass(slots=True)
class SlotView:
    """A slot's weights of one module, as tensors ready to multiply with."""

    owner: SlotRows
    rank: int  # the largest of its slices'
    a_t: Tensor  # [in_features, rank * num_slices]
    b: tuple[tuple[slice, int, Tensor], ...]  # per slice that has rank: output columns, slice, [rank, out]


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One fused projection's share of the rank pool.

    `index` is its place in `SlotRows.ranks`; `columns` are the output columns of its slices.
    """

    index: int
    a: Tensor
    b: Tensor
    columns: tuple[slice, ...]
    slots: SlotTable
    _views: dict[int, SlotView] = field(default_factory=dict, repr=False)

    @property
    def num_slices(self) -> int:
        """Projections computed together."""
        return len(self.columns)

    def ranks(self, slot: int) -> tuple[int, ...]:
        """True rank of each slice; all 0 where the slot's adapter does not change this module."""
        bound = self.slots.rows[slot]
        return bound.ranks[self.index] if bound else (0,) * self.num_slices

    def view(self, slot: int) -> SlotView | None:
        """The slot's weights, or None where its adapter does not change this module.

        Views of consecutive pages are kept until the slot is bound anew: made each time they would
        cost as much as the products of a decode step.
        """
        bound = self.slots.rows[slot]
        if bound is None:
            return None
        kept = self._views.get(slot)
        if kept is not None and kept.owner is bound:
            return kept
        rank = max(bound.ranks[self.index])
        if rank == 0:
            return None
        view = self._make_view(bound, rank)
        if bound.first_row is not None:
            self._views[slot] = view
        return view

    def _make_view(self, bound: SlotRows, rank: int) -> SlotView:
        first = bound.first_row
        if first is None:
            rows = bound.row_index(rank).to(self.a.device)
            a, b = self.a.index_select(0, rows), self.b.index_select(0, rows)
        else:
            a, b = self.a[first : first + rank], self.b[first : first + rank]
        parts = tuple(
            (columns, i, b[:slice_rank, columns])
            for i, (columns, slice_rank) in enumerate(zip(self.columns, bound.ranks[self.index], strict=True))
            if slice_rank
        )
        return SlotView(bound, rank, a.reshape(rank * self.num_slices, -1).t(), parts)
