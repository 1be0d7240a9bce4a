"""Slots on the device: page lists and true ranks of every slot, as the kernels read them.

    pages    [num_slots, max_pages]                int32, for all modules
    ranks    [num_modules, num_slots, slices_pad]  int32; 0 past a module's slices
    affines  [num_modules, num_slots, 2]           int64: addresses of scale and shift; 0: none

Follows the host's `SlotTable`: `refresh` copies what was bound anew, before a step that uses it.
The tensors never move, so a captured graph keeps reading the present bindings. Addresses and no
copies: columns of all modules for every slot would take more than most pools, and few adapters
have any. What they point to lives as long as the slot is bound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows
from kernels.lora.side import Affine
from kernels.lora.triton.errors import LaunchRefused

ADDRESS_BYTES = 16  # scales and shifts begin at multiples, as torch's memory does


@dataclass(frozen=True, slots=True)
class TableView:
    """What one module's launches read."""

    pages: Tensor  # [num_slots, max_pages]
    ranks: Tensor  # [num_slots, slices_pad]


class DeviceTable:
    """The device's copy of one `SlotTable`."""

    def __init__(self, modules: Sequence[LoraModule], max_rank: int) -> None:
        device, self._slots = modules[0].a.device, modules[0].slots
        num_slots = len(self._slots.rows)
        max_pages = -(-max_rank // PAGE_ROWS)
        # Lists of 16 bytes, whatever the number of slices: one compilation serves all alignments.
        slices_pad = 4 * -(-max(module.num_slices for module in modules) // 4)
        self._pages = torch.zeros(num_slots, 4 * -(-max_pages // 4), dtype=torch.int32, device=device)
        self._ranks = torch.zeros(len(modules), num_slots, slices_pad, dtype=torch.int32, device=device)
        self._affines = torch.zeros(len(modules), num_slots, 2, dtype=torch.int64, device=device)
        self._copied: list[SlotRows | None] = [None] * num_slots

    def view(self, module: int) -> TableView:
        """The share of module `module`."""
        return TableView(self._pages, self._ranks[module])

    def affines(self, module: int) -> Tensor:
        """What module `module` scales and shifts its columns by, [num_slots, 2]."""
        return self._affines[module]

    def refresh(self, slots: Iterable[int]) -> None:
        """Copy these slots' bindings where they changed."""
        for slot in slots:
            bound = self._slots.rows[slot]
            if bound is not self._copied[slot]:
                self._copy(slot, bound)
                self._copied[slot] = bound

    def _copy(self, slot: int, bound: SlotRows | None) -> None:
        if bound is None:
            self._ranks[:, slot].zero_()
            return
        if len(bound.pages) > self._pages.shape[1]:
            raise LaunchRefused(
                "pages", len(bound.pages), f"are more than the {self._pages.shape[1]} of a slot"
            )
        width = self._ranks.shape[2]
        padded = [(*ranks, *(0 for _ in range(width - len(ranks)))) for ranks in bound.ranks]
        self._pages[slot, : len(bound.pages)] = torch.tensor(bound.pages, dtype=torch.int32)
        self._ranks[:, slot] = torch.tensor(padded, dtype=torch.int32).to(self._ranks.device)
        side = bound.side
        affines = side.affines if side else (None,) * len(bound.ranks)
        addresses = [self._addresses(affine) for affine in affines]
        self._affines[:, slot] = torch.tensor(addresses, dtype=torch.int64).to(self._affines.device)

    def _addresses(self, affine: Affine | None) -> tuple[int, int]:
        if affine is None:
            return 0, 0
        return self._address("scale", affine.scale), self._address("shift", affine.shift)

    def _address(self, name: str, columns: Tensor | None) -> int:
        if columns is None:
            return 0
        # The kernel sees an address alone: what it cannot check is refused here.
        if columns.device != self._affines.device or columns.dtype != torch.float32:
            raise LaunchRefused(
                name, (columns.device, columns.dtype), f"is not fp32 on {self._affines.device}"
            )
        if not columns.is_contiguous() or columns.data_ptr() % ADDRESS_BYTES:
            raise LaunchRefused(
                name, columns.data_ptr(), f"is not contiguous from a multiple of {ADDRESS_BYTES}"
            )
        return columns.data_ptr()
