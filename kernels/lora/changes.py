"""Computes what adapters change beside their rank rows; see `side`.

Plain PyTorch on any device, tile by tile: these adapters are few. Rows of tokens whose slot has no
such change stay bit-equal. A step without such adapters costs one look at an empty set a module
(`SlotTable.sided`).
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from kernels.lora.end_ops import EndOps
from kernels.lora.pool import LoraModule, SlotTable
from kernels.lora.segments import Segments, Tile
from kernels.lora.side import LowRank, Replacement, SlotSide


def change_columns(module: LoraModule, segments: Segments, *, out: Tensor) -> None:
    """Scale and shift the module's base output, `out` [num_tokens, out_features], before LoRA is added.

    Nothing to do where `expand` does it (Triton).
    """
    if module.slots.columns_in_expand:
        return
    for tile, side in _sides(module.slots, segments):
        affine = side.affines[module.index]
        if affine is not None:
            _put(out, segments, tile, affine(segments.take(out, tile)))


class TorchEndOps(EndOps):
    """Implements `EndOps`."""

    def __init__(self, slots: SlotTable) -> None:
        self._slots = slots

    def change_embeddings(self, ids: Tensor, segments: Segments, *, multiplier: Tensor, out: Tensor) -> None:
        """See `EndOps.change_embeddings`."""
        for tile, side in _sides(self._slots, segments):
            change, rows = side.embedding, segments.take(ids, tile)
            if isinstance(change, Replacement):
                # The product is in the weight's dtype, as transformers' scaled embeddings make it.
                _put(out, segments, tile, F.embedding(rows, change.weight) * multiplier)
            elif change is not None:
                added = F.embedding(rows, change.a_t).float() @ change.b.float() * multiplier
                _put(out, segments, tile, _base(change, segments.take(out, tile)) + added)

    def change_logits(self, x: Tensor, segments: Segments, rows: Tensor, *, out: Tensor) -> None:
        """See `EndOps.change_logits`."""
        if self._slots.sided:
            # Described here and not with the step: few steps need it, and none asks twice.
            self._change(x, segments.of_rows(rows), out)

    def _change(self, x: Tensor, segments: Segments, out: Tensor) -> None:
        for tile, side in _sides(self._slots, segments):
            change, rows = side.head, segments.take(x, tile)
            if isinstance(change, Replacement):
                _put(out, segments, tile, F.linear(rows, change.weight, change.bias))
            elif change is not None:
                added = rows.float() @ change.a_t.float() @ change.b.float()
                _put(out, segments, tile, _base(change, segments.take(out, tile)) + added)


def _sides(slots: SlotTable, segments: Segments) -> Iterator[tuple[Tile, SlotSide]]:
    for tile in segments.tiles if slots.sided else ():
        bound = slots.rows[tile.slot]
        if bound is not None and bound.side is not None:
            yield tile, bound.side


def _base(change: LowRank, y: Tensor) -> Tensor:
    """What LoRA is added to, in fp32."""
    return y.float() if change.affine is None else change.affine(y)


def _put(out: Tensor, segments: Segments, tile: Tile, values: Tensor) -> None:
    """The tile's rows of `out` become `values`, rounded once."""
    if tile.first_row is None:
        out.index_copy_(0, segments.rows(tile), values.to(out.dtype))
    else:
        out[tile.first_row : tile.first_row + tile.length].copy_(values)
