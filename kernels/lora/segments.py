"""Which tokens of a step use which slot: described once per step, on the host, for every module.

Knows nothing of weights, ranks or requests. Tokens are stable-sorted by slot and cut into tiles,
each of one slot; a token without an adapter is in no tile, so a step of base-only traffic has
none and costs nothing. (SGMV of Punica, https://arxiv.org/abs/2310.18547.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens `order[start : start + length]` use `slot`."""

    slot: int
    start: int
    length: int
    # The first of the tokens when they are consecutive rows of the batch: a slice then replaces a gather.
    first_row: int | None


@dataclass(frozen=True, slots=True)
class Segments:
    """All tiles of one step."""

    order: Tensor  # [num_lora_tokens] int64: rows of the batch, stable-sorted by slot
    tiles: tuple[Tile, ...]
    num_tokens: int  # of the batch, with and without an adapter

    @property
    def num_lora_tokens(self) -> int:
        """Tokens that have an adapter."""
        return self.order.shape[0]

    def rows(self, tile: Tile) -> Tensor:
        """The tile's rows of the batch, [length] int64."""
        return self.order[tile.start : tile.start + tile.length]

    def take(self, x: Tensor, tile: Tile) -> Tensor:
        """The tile's rows of `x` [num_tokens, …]: a view where they are consecutive."""
        if tile.first_row is None:
            return x.index_select(0, self.rows(tile))
        return x[tile.first_row : tile.first_row + tile.length]

    def of_rows(self, rows: Tensor) -> "Segments":
        """The tiles of a batch that has only these rows, [num_rows] int64, in their order."""
        slots: list[int | None] = [None] * self.num_tokens
        for tile in self.tiles:
            for row in self.rows(tile).tolist():
                slots[row] = tile.slot
        return build_segments([slots[row] for row in rows.tolist()])

    def moved(self, order: Tensor, logits: "Segments | None" = None) -> "MovedSegments":
        """The same with `order` on a device.

        `logits` are those of the rows that the head computes; None: no adapter of the step changes it.
        """
        return MovedSegments(order, self.tiles, self.num_tokens, logits or Segments(order, (), 0))


@dataclass(frozen=True, slots=True)
class MovedSegments(Segments):
    """Tiles of a step whose `order` is on another device."""

    logits: Segments

    def of_rows(self, rows: Tensor) -> Segments:
        """What was described on the host: reading `rows` back would wait for the device."""
        return self.logits


def build_segments(slots: Sequence[int | None], max_tile_tokens: int | None = None) -> Segments:
    """Sort the tokens of a step by slot; `None` is a token without an adapter.

    A tile has at most `max_tile_tokens` tokens: the tile height of a GPU kernel, or no bound.
    """
    by_slot: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot is not None:
            by_slot.setdefault(slot, []).append(row)
    order: list[int] = []
    tiles: list[Tile] = []
    for slot in sorted(by_slot):
        rows = by_slot[slot]
        height = max_tile_tokens or len(rows)
        for begin in range(0, len(rows), height):
            part = rows[begin : begin + height]
            consecutive = part[-1] - part[0] + 1 == len(part)
            tiles.append(Tile(slot, len(order), len(part), part[0] if consecutive else None))
            order.extend(part)
    return Segments(torch.tensor(order, dtype=torch.int64), tuple(tiles), len(slots))
