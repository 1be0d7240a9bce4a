"""The rank pool: the tensors of all slots, in pages of 8 rank rows.

Who holds which page or slot is decided elsewhere (`slots`). Invariant: a page is written only
while no slot is bound to it, so the step loop never computes a half-written adapter.
"""

from dataclasses import replace

import torch

from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.types import PackedAdapter
from kernels.device import Device, HostDevice
from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows, SlotTable


class TorchRankPool:
    """Implements `RankPool` with one pair of tensors a module; the first dimension is the rank row."""

    def __init__(
        self,
        layout: AdapterLayout,
        *,
        num_slots: int,
        num_pages: int,
        dtype: torch.dtype,
        device: Device | None = None,
    ) -> None:
        self._device = device or HostDevice()
        rows, place = num_pages * PAGE_ROWS, self._device.torch
        self._num_pages = num_pages
        self._page_bytes = layout.page_bytes(dtype.itemsize)
        self.slots = SlotTable([None] * num_slots)
        self.modules: tuple[LoraModule, ...] = tuple(
            LoraModule(
                index=index,
                a=torch.zeros(rows, len(module.projections), module.in_features, dtype=dtype, device=place),
                b=torch.zeros(rows, module.out_features, dtype=dtype, device=place),
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

    def write(self, pages: tuple[int, ...], adapter: PackedAdapter) -> PackedLora:
        """Copy the adapter's true ranks into `pages`; rows past them keep what they hold.

        Returns the adapter with its side where the model computes; on a CPU it is there already.
        """
        packed = _packed(adapter)
        with self._device.beside():
            self._write_rows(SlotRows(pages, packed.ranks), packed)
            side = packed.side.moved(self._device.put) if packed.side else None
        return packed if side is None else replace(packed, side=side)

    def _write_rows(self, rows: SlotRows, packed: PackedLora) -> None:
        for module, weights in zip(self.modules, packed.modules, strict=True):
            if weights is None:
                continue
            rank = weights.a.shape[0]
            first = rows.first_row
            if first is None:
                index = self._device.put(rows.row_index(rank))
                module.a.index_copy_(0, index, self._device.put(weights.a))
                module.b.index_copy_(0, index, self._device.put(weights.b))
            else:
                module.a[first : first + rank].copy_(weights.a, non_blocking=True)
                module.b[first : first + rank].copy_(weights.b, non_blocking=True)

    def bind(self, slot: int, pages: tuple[int, ...], adapter: PackedAdapter) -> None:
        """From the next step on, `slot` computes `pages`. Constant time."""
        packed = _packed(adapter)
        # The side is immutable and where the model computes, because `write` returned it.
        self.slots.bind(slot, SlotRows(pages, packed.ranks, packed.side))

    def unbind(self, slot: int) -> None:
        """The slot holds nothing."""
        self.slots.bind(slot, None)


def _packed(adapter: PackedAdapter) -> PackedLora:
    if not isinstance(adapter, PackedLora):
        raise TypeError(f"adapter: {type(adapter).__name__} was not packed for this pool")
    return adapter
