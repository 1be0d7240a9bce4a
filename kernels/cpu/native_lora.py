"""LoRA by the C++ kernels: shrink and expand in one pass, a unit of tokens at a time.

    y[t, columns_i] = y · scale + shift + (x[t] @ A_i[slot(t)]ᵀ) @ B_i[slot(t)]

The scale and shift of an adapter (DoRA, biases of its own) are applied where `columns_in_expand` says so.

What a step needs of the slots is gathered once and used by every module. A token's numbers depend
on its own input and adapter alone, never on the batch. What the kernels cannot read (fp16, another
device) plain PyTorch computes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.calls import DTYPES, LoraCall, computable
from kernels.cpu.native import NativeKernels
from kernels.lora.ops import LoraOps
from kernels.lora.pool import LoraModule, SlotRows, SlotTable
from kernels.lora.segments import Segments
from kernels.lora.side import SlotSide


@dataclass(frozen=True, slots=True)
class _BoundSlot:
    """A slot's pages and ranks as the kernels read them."""

    owner: SlotRows
    pages: Tensor  # [num_pages] int64
    ranks: Tensor  # [num_modules, ranks_stride] int64
    affines: Tensor | None  # [num_modules, 2] int64: addresses of scale and shift, 0 for none
    max_rank: int


@dataclass(frozen=True, slots=True)
class _StepTiles:
    """The tiles of a step, for all modules."""

    segments: Segments
    table: SlotTable
    version: int  # of the table, when the tiles were made
    tiles: Tensor  # [num_tiles, 5] int64: start, length, address of pages, of ranks, of affines
    bound: tuple[_BoundSlot, ...]  # kept alive for their addresses
    max_rank: int
    ranks_stride: int

    def holds(self, segments: Segments, table: SlotTable) -> bool:
        """Whether it was made from these segments and no slot was bound anew since."""
        return segments is self.segments and table is self.table and table.version == self.version


@dataclass(frozen=True, slots=True)
class _ModuleCall:
    """A module's call with all that never changes filled in."""

    module: LoraModule
    columns: Tensor
    call: LoraCall


class NativeLoraOps(LoraOps):
    """Implements `LoraOps`; only `add` is computed here, the halves are `other`'s."""

    def __init__(self, kernels: NativeKernels, other: LoraOps) -> None:
        self._kernels, self._other = kernels, other
        self._calls: dict[int, _ModuleCall] = {}  # by the module's identity; the entry keeps it alive
        self._slots: dict[int, _BoundSlot] = {}
        self._step: _StepTiles | None = None

    def hidden(self, segments: Segments, module: LoraModule, x: Tensor) -> Tensor:
        """See `LoraOps.hidden`."""
        return self._other.hidden(segments, module, x)

    def shrink(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.shrink`."""
        self._other.shrink(x, module, segments, out=out)

    def expand(self, hidden: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.expand`."""
        self._other.expand(hidden, module, segments, out=out)

    def add(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.add`."""
        if not (computable(x, out, module.a) and x.dtype == out.dtype):
            self._other.add(x, module, segments, out=out)
            return
        call = self.prepared(module, segments)
        if call is None:
            return
        call.x_dtype = DTYPES[x.dtype]
        call.x, call.x_stride = x.data_ptr(), x.stride(0)
        call.out, call.out_stride = out.data_ptr(), out.stride(0)
        self._kernels.lora(call)

    def prepared(self, module: LoraModule, segments: Segments) -> LoraCall | None:
        """The module's call for a step, but for `x_dtype`, `x`, `out` and their strides.

        Valid until the next call for this module. None: nothing is to be added in this step.
        """
        step = self._step
        if step is None or not step.holds(segments, module.slots):
            step = self._step = self._tiles(segments, module.slots)
        if not step.max_rank:
            return None
        call = self._call(module)
        call.order, call.tiles = segments.order.data_ptr(), step.tiles.data_ptr()
        call.num_tiles, call.max_rank = step.tiles.shape[0], step.max_rank
        call.ranks_stride = step.ranks_stride
        return call

    def _call(self, module: LoraModule) -> LoraCall:
        kept = self._calls.get(id(module))
        if kept is None:
            ends = [columns.stop for columns in module.columns]
            columns = torch.tensor([0, *ends], dtype=torch.int64)
            call = LoraCall(
                pool_dtype=DTYPES[module.a.dtype],
                a=module.a.data_ptr(),
                b=module.b.data_ptr(),
                in_features=module.a.shape[2],
                out_features=module.b.shape[1],
                num_slices=module.num_slices,
                columns=columns.data_ptr(),
                module=module.index,
            )
            kept = self._calls[id(module)] = _ModuleCall(module, columns, call)
        return kept.call

    def _tiles(self, segments: Segments, table: SlotTable) -> _StepTiles:
        slots = {tile.slot for tile in segments.tiles}
        bound = {slot: self._bound(slot, owner) for slot in slots if (owner := table.rows[slot])}
        tiles = [
            (
                tile.start,
                tile.length,
                found.pages.data_ptr(),
                found.ranks.data_ptr(),
                found.affines.data_ptr() if found.affines is not None and table.columns_in_expand else 0,
            )
            for tile in segments.tiles
            if (found := bound.get(tile.slot)) is not None and found.max_rank
        ]
        return _StepTiles(
            segments=segments,
            table=table,
            version=table.version,
            tiles=torch.tensor(tiles, dtype=torch.int64).view(-1, 5),
            bound=tuple(bound.values()),
            max_rank=max((found.max_rank for found in bound.values()), default=0),
            ranks_stride=next((found.ranks.shape[1] for found in bound.values()), 0),
        )

    def _bound(self, slot: int, owner: SlotRows) -> _BoundSlot:
        kept = self._slots.get(slot)
        if kept is None or kept.owner is not owner:
            width = max(map(len, owner.ranks))
            padded = [[*ranks, *[0] * (width - len(ranks))] for ranks in owner.ranks]
            kept = self._slots[slot] = _BoundSlot(
                owner,
                torch.tensor(owner.pages, dtype=torch.int64),
                torch.tensor(padded, dtype=torch.int64),
                _affines(owner.side),
                max(map(max, padded)),
            )
        return kept


def _affines(side: SlotSide | None) -> Tensor | None:
    if side is None or not any(side.affines):
        return None
    pairs = ((None, None) if affine is None else (affine.scale, affine.shift) for affine in side.affines)
    return torch.tensor(
        [[0 if part is None else part.data_ptr() for part in pair] for pair in pairs], dtype=torch.int64
    )
