"""The step's tiles on the device, and the shape that its launches have.

    order      [max_tokens]     int32: rows of the batch, sorted by slot
    tiles      [max_tiles, 4]   int32: slot, first place in order, length, unused
    num_tiles  [1]              int32: programs of later tiles leave at once

Written once a step, at fixed addresses: a captured graph is replayed with other tiles as
long as its shape has room for them. `lay_out` makes them on the host, for whoever moves a step's
numbers together; `TileBuffers` moves them itself. Knows nothing of weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.lora.segments import Segments
from kernels.lora.triton.configs import TILE_HEIGHTS
from kernels.lora.triton.errors import LaunchRefused


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """What grids and compilations depend on; a captured graph has one for all its replays."""

    tile_height: int
    num_tiles: int  # of the grid; the device knows how many there really are
    rank: int  # a power of two that no adapter of the step exceeds

    @classmethod
    def for_capture(cls, num_tokens: int, num_slots: int, rank: int) -> "LaunchShape":
        """Room for any mix of adapters in a decode batch of `num_tokens`."""
        height = TILE_HEIGHTS[0]
        return cls(height, min(num_tokens, num_slots + num_tokens // height), rank)


@dataclass(frozen=True, slots=True)
class StepTiles:
    """What the launches of a step read."""

    order: Tensor
    tiles: Tensor
    num_tiles: Tensor
    shape: LaunchShape

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is moved to the device."""
        return self.order, self.tiles, self.num_tiles

    def moved(self, tensors: Sequence[Tensor]) -> "StepTiles":
        """The same with its tensors there."""
        order, tiles, num_tiles = tensors
        return StepTiles(order, tiles, num_tiles, self.shape)


def tile_height(segments: Segments) -> int:
    """Tall tiles where adapters have many tokens: each tile reads its adapter's weights once."""
    low, high = TILE_HEIGHTS
    slots = len({tile.slot for tile in segments.tiles})
    return high if segments.num_lora_tokens >= slots * high // 2 and slots else low


def cut(segments: Segments, height: int) -> list[tuple[int, int, int]]:
    """(slot, start, length) of tiles no taller than `height`."""
    return [
        (tile.slot, begin, min(height, tile.start + tile.length - begin))
        for tile in segments.tiles
        for begin in range(tile.start, tile.start + tile.length, height)
    ]


def lay_out(segments: Segments, shape: LaunchShape, max_tokens: int | None = None) -> StepTiles:
    """The step's tiles in host memory; refuse more than the shape has room for.

    `max_tokens` is the length of `order`, a captured graph's number of tokens; None: as many as there are.
    """
    tiles, num_tokens = cut(segments, shape.tile_height), segments.num_lora_tokens
    room = num_tokens if max_tokens is None else max_tokens
    if len(tiles) > shape.num_tiles:
        raise LaunchRefused("tiles", len(tiles), f"are more than the launch's {shape.num_tiles}")
    if num_tokens > room:
        raise LaunchRefused("tokens", num_tokens, f"are more than {room}")
    order = torch.zeros(room, dtype=torch.int32)
    order[:num_tokens] = segments.order
    listed = torch.zeros(shape.num_tiles, 4, dtype=torch.int32)
    listed[: len(tiles), :3] = torch.tensor(tiles, dtype=torch.int32).view(-1, 3)
    return StepTiles(order, listed, torch.tensor([len(tiles)], dtype=torch.int32), shape)


class TileBuffers:
    """Device memory for the tiles of one step at a time."""

    def __init__(self, max_tokens: int, num_slots: int, device: torch.device) -> None:
        # With the lowest tiles, each slot has at most one that is not full.
        self._max_tiles = min(max_tokens, num_slots + max_tokens // TILE_HEIGHTS[0])
        self._max_tokens = max_tokens
        self._all = torch.zeros(4 * (1 + self._max_tiles) + max_tokens, dtype=torch.int32, device=device)

    def write(self, segments: Segments, shape: LaunchShape) -> StepTiles:
        """Copy the step's tiles to the device; refuse more than the shape has room for."""
        tiles = cut(segments, shape.tile_height)
        if len(tiles) > min(shape.num_tiles, self._max_tiles):
            raise LaunchRefused("tiles", len(tiles), f"are more than the launch's {shape.num_tiles}")
        if segments.num_lora_tokens > self._max_tokens:
            raise LaunchRefused("tokens", segments.num_lora_tokens, f"are more than {self._max_tokens}")
        front = torch.tensor([(len(tiles), 0, 0, 0), *((*tile, 0) for tile in tiles)], dtype=torch.int32)
        # Two places, one copy each: the order's place must not depend on the number of tiles.
        self._all[: front.numel()].copy_(front.flatten())
        begin = 4 * (1 + self._max_tiles)
        self._all[begin : begin + segments.num_lora_tokens].copy_(segments.order)
        return StepTiles(
            self._all[begin:],
            self._all[4:begin].view(self._max_tiles, 4),
            self._all[:1],
            shape,
        )
