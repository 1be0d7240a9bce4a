"""The rank pool: the tensors of all slots, in pages of 8 rank rows.

Who holds which page or slot is decided elsewhere (`slots`). Invariant: a page is written only
while no slot is bound to it, so the step loop never computes a half-written adapter.
"""

import torch

from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.types import PackedAdapter
from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows, SlotTable


class TorchRankPool:
    """Implements `RankPool` with one pair of tensors a module; the first dimension is the rank row."""

    def __init__(self, layout: AdapterLayout, *, num_slots: int, num_pages: int, dtype: torch.dtype) -> None:
        rows = num_pages * PAGE_ROWS
        self._num_pages = num_pages
        self._page_bytes = layout.page_bytes(dtype.itemsize)
        self.slots = SlotTable([None] * num_slots)
        self.modules: tuple[LoraModule, ...] = tuple(
            LoraModule(
                index=index,
                a=torch.zeros(rows, len(module.projections), module.in_features, dtype=dtype),
                b=torch.zeros(rows, module.out_features, dtype=dtype),
                columns=module.columns,
                slots=self.slots,
            )
            for index, module in enumerate(layout.modules)
        )

    @property
    def num_pages(self) -> int:
        """Pages in the pool."""
        return self._num_pages

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all modules."""
        return self._page_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole pool."""
        return self._num_pages * self._page_bytes

    @property
    def side_bytes(self) -> int:
        """Bytes that all slots hold beside their pages now."""
        return sum(rows.side_bytes for rows in self._sided)

    def side_bytes_of(self, pages: tuple[int, ...]) -> int:
        """Bytes that the slot bound to these pages holds beside them; 0 when none is."""
        return sum(rows.side_bytes for rows in self._sided if rows.pages == pages)

    @property
    def _sided(self) -> list[SlotRows]:
        """Of the slots that hold anything beside their pages."""
        return [rows for slot in self.slots.sided if (rows := self.slots.rows[slot])]

    def write(self, pages: tuple[int, ...], adapter: PackedAdapter) -> None:
        """Copy the adapter's true ranks into `pages`; rows past them keep what they hold."""
        packed = _packed(adapter)
        rows = SlotRows(pages, packed.ranks)
        for module, weights in zip(self.modules, packed.modules, strict=True):
            if weights is None:
                continue
            rank = weights.a.shape[0]
            first = rows.first_row
            if first is None:
                index = rows.row_index(rank)
                module.a.index_copy_(0, index, weights.a)
                module.b.index_copy_(0, index, weights.b)
            else:
                module.a[first : first + rank].copy_(weights.a)
                module.b[first : first + rank].copy_(weights.b)

    def bind(self, slot: int, pages: tuple[int, ...], adapter: PackedAdapter) -> None:
        """From the next step on, `slot` computes `pages`. Constant time."""
        packed = _packed(adapter)
        # The side is immutable and already where the model computes: the slot shares it with the CPU cache.
        self.slots.bind(slot, SlotRows(pages, packed.ranks, packed.side))

    def unbind(self, slot: int) -> None:
        """The slot holds nothing."""
        self.slots.bind(slot, None)


def _packed(adapter: PackedAdapter) -> PackedLora:
    if not isinstance(adapter, PackedLora):
        raise TypeError(f"adapter: {type(adapter).__name__} was not packed for this pool")
    return adapter
