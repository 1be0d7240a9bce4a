"""Ends on the device: where each slot's own matrices of the embedding and the head are.

    ends  [2, num_slots, 8]  int64: of the embedding, of the head
          0 rank of LoRA, then addresses: 1 A, 2 B, 3 scale, 4 shift, 5 own matrix, 6 its bias; 7 unused

0 is none of it; a slot whose adapter leaves an end alone has zeros alone. Follows the host's
`SlotTable` as `tables` does: `refresh` copies what was bound anew, the tensor never moves, and what
an address points to lives as long as the slot is bound.
"""

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from kernels.lora.pool import SlotRows, SlotTable
from kernels.lora.side import Affine, EndChange, LowRank
from kernels.lora.triton.errors import LaunchRefused
from kernels.lora.triton.tables import ADDRESS_BYTES

FIELDS = 8
_NOTHING = (0,) * FIELDS


class SlotEnds:
    """The device's copy of both ends of one `SlotTable`; matrices are of `dtype`."""

    def __init__(self, slots: SlotTable, device: torch.device, dtype: torch.dtype) -> None:
        self._slots, self._device, self._dtype = slots, device, dtype
        self._ends = torch.zeros(2, len(slots.rows), FIELDS, dtype=torch.int64, device=device)
        self._copied: list[SlotRows | None] = [None] * len(slots.rows)

    @property
    def embedding(self) -> Tensor:
        """[num_slots, 8]"""
        return self._ends[0]

    @property
    def head(self) -> Tensor:
        """[num_slots, 8]"""
        return self._ends[1]

    def refresh(self, slots: Iterable[int]) -> None:
        """Copy these slots' bindings where they changed."""
        for slot in slots:
            bound = self._slots.rows[slot]
            if bound is not self._copied[slot]:
                self._ends[:, slot] = torch.tensor(self._fields(bound)).to(self._device)
                self._copied[slot] = bound

    def _fields(self, bound: SlotRows | None) -> Sequence[tuple[int, ...]]:
        side = bound.side if bound else None
        if side is None:
            return _NOTHING, _NOTHING
        # Looking a token up reads one row of Aᵀ; the head's products read rows of A.
        return self._end(side.embedding, turned=False), self._end(side.head, turned=True)

    def _end(self, change: EndChange | None, *, turned: bool) -> tuple[int, ...]:
        if change is None:
            return _NOTHING
        if isinstance(change, LowRank):
            a, affine = change.a_t.t() if turned else change.a_t, change.affine or Affine()
            return (
                change.rank,
                self._address("A", a, self._dtype),
                self._address("B", change.b, self._dtype),
                self._address("scale", affine.scale, torch.float32),
                self._address("shift", affine.shift, torch.float32),
                0,
                0,
                0,
            )
        weight, bias = change.weight, change.bias
        return (
            *(0,) * 5,
            self._address("weight", weight, self._dtype),
            self._address("bias", bias, self._dtype),
            0,
        )

    def _address(self, name: str, tensor: Tensor | None, dtype: torch.dtype) -> int:
        if tensor is None or not prod(tensor.shape):
            return 0
        # The kernel sees an address alone: what it cannot check is refused here.
        if tensor.device != self._ends.device or tensor.dtype != dtype:
            raise LaunchRefused(name, (tensor.device, tensor.dtype), f"is not {dtype} on {self._ends.device}")
        if not tensor.is_contiguous() or tensor.data_ptr() % ADDRESS_BYTES:
            raise LaunchRefused(
                name, tensor.data_ptr(), f"is not contiguous from a multiple of {ADDRESS_BYTES}"
            )
        return tensor.data_ptr()
