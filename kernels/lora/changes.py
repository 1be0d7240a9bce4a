"""Computes what adapters change beside their rank rows; see `side`.

Plain PyTorch on any device, tile by tile: these adapters are few. Rows of tokens whose slot has no
such change stay bit-equal. Callers ask `SlotTable.sided` first, so that a step without such
adapters costs one look at an empty set a module.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

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


def change_embeddings(
    slots: SlotTable, ids: Tensor, segments: Segments, *, multiplier: Tensor | float, out: Tensor
) -> None:
    """Change `out` [num_tokens, width], the embeddings of `ids` [num_tokens] by the base.

    `multiplier` is what the base model's embedding multiplies its rows with.
    """
    for tile, side in _sides(slots, segments):
        change, rows = side.embedding, segments.take(ids, tile)
        if isinstance(change, Replacement):
            # The product is in the weight's dtype, as transformers' scaled embeddings make it.
            _put(out, segments, tile, F.embedding(rows, change.weight) * multiplier)
        elif change is not None:
            added = F.embedding(rows, change.a_t).float() @ change.b.float() * multiplier
            _put(out, segments, tile, _base(change, segments.take(out, tile)) + added)


def change_logits(slots: SlotTable, x: Tensor, segments: Segments, *, out: Tensor) -> None:
    """Change `out` [num_rows, vocab_size], the base's logits of `x` [num_rows, in_features]."""
    for tile, side in _sides(slots, segments):
        change, rows = side.head, segments.take(x, tile)
        if isinstance(change, Replacement):
            _put(out, segments, tile, F.linear(rows, change.weight, change.bias))
        elif change is not None:
            added = rows.float() @ change.a_t.float() @ change.b.float()
            _put(out, segments, tile, _base(change, segments.take(out, tile)) + added)


def _sides(slots: SlotTable, segments: Segments) -> Iterator[tuple[Tile, SlotSide]]:
    for tile in segments.tiles:
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
