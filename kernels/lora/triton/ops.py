"""`LoraOps` by Triton kernels: two launches a module, whatever its slices and the step's adapters.

Owns the device's view of slots and of the step; the weights are the rank pool's. One `Segments`
describes one step: what the device must know is written when a step's segments are first seen, or
by `prepare`, or by the caller (`tiles`, `begin`); this must come before the capture or replay of a graph.
"""

from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor

from kernels.lora.ops import LoraOps
from kernels.lora.pool import PAGE_ROWS, LoraModule
from kernels.lora.segments import Segments
from kernels.lora.triton import library
from kernels.lora.triton.columns import ColumnBlocks, cut_columns
from kernels.lora.triton.configs import MIN_RANK, BlockTable, load_table, rank_bound
from kernels.lora.triton.errors import LaunchRefused
from kernels.lora.triton.tables import DeviceTable
from kernels.lora.triton.tiles import LaunchShape, StepTiles, TileBuffers, cut, lay_out, tile_height

DEPENDENT_LAUNCH_CAPABILITY = (9, 0)  # Hopper


def has_dependent_launch(device: torch.device) -> bool:
    """Whether a launch may start while the one before it ends."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= DEPENDENT_LAUNCH_CAPABILITY
    )


class TritonLoraOps(LoraOps):
    """Implements `LoraOps` for the modules of one rank pool."""

    def __init__(
        self,
        modules: Sequence[LoraModule],
        *,
        max_rank: int,
        max_tokens: int,
        blocks: BlockTable | None = None,
        dependent: bool | None = None,
    ) -> None:
        device = modules[0].a.device
        self._slots = modules[0].slots
        self._table = DeviceTable(modules, rank_bound(max_rank))
        self._tiles = TileBuffers(max_tokens, len(self._slots.rows), device)
        self._blocks = blocks or load_table()
        self._dependent = has_dependent_launch(device) if dependent is None else dependent
        self._columns: dict[tuple[int, int], ColumnBlocks] = {}
        self._segments: Segments | None = None
        self._step: StepTiles | None = None

    def prepare(self, segments: Segments, shape: LaunchShape | None = None) -> None:
        """Write what the launches of a step read; `shape` is a captured graph's."""
        self.begin(segments, self._tiles.write(segments, self._fitting(segments, shape)))

    def tiles(
        self, segments: Segments, shape: LaunchShape | None = None, max_tokens: int | None = None
    ) -> StepTiles:
        """What a step's launches read, in host memory, for a caller who moves it and then calls `begin`."""
        return lay_out(segments, self._fitting(segments, shape), max_tokens)

    def begin(self, segments: Segments, step: StepTiles) -> None:
        """From now on the launches for `segments` read `step`, which is on the device."""
        self._table.refresh({tile.slot for tile in segments.tiles})
        self._segments, self._step = segments, step

    def hidden(self, segments: Segments, module: LoraModule, x: Tensor) -> Tensor:
        """[split_k, num_tokens, num_slices, rank] fp32."""
        shape = self._prepared(segments).shape
        split_k = self._shrink_config(shape, module)[2]
        return torch.empty(
            split_k, x.shape[0], module.num_slices, shape.rank, dtype=torch.float32, device=x.device
        )

    def shrink(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.shrink`."""
        step, table = self._prepared(segments), self._table.view(module.index)
        library.lora_shrink(
            x,
            module.a,
            table.pages,
            table.ranks,
            step.order,
            step.tiles,
            step.num_tiles,
            astuple(step.shape),
            self._shrink_config(step.shape, module),
            self._dependent,
            out,
        )

    def expand(self, hidden: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.expand`."""
        step, table = self._prepared(segments), self._table.view(module.index)
        config = self._blocks.expand(step.shape.tile_height, step.shape.num_tiles, step.shape.rank)
        columns = self._column_blocks(module, config.block_n)
        library.lora_expand(
            hidden,
            module.b,
            table.pages,
            table.ranks,
            self._table.affines(module.index),
            step.order,
            step.tiles,
            step.num_tiles,
            columns.blocks,
            columns.align,
            columns.even,
            astuple(step.shape),
            astuple(config),
            self._dependent,
            out,
        )

    def _fitting(self, segments: Segments, shape: LaunchShape | None) -> LaunchShape:
        rank = self._rank_of(segments)
        if shape is None:
            return _exact_shape(segments, rank)
        if rank > shape.rank:
            raise LaunchRefused("rank", rank, f"is over the launch's {shape.rank}")
        return shape

    def _prepared(self, segments: Segments) -> StepTiles:
        if self._step is None or segments is not self._segments:
            self.prepare(segments)
        assert self._step is not None
        return self._step

    def _rank_of(self, segments: Segments) -> int:
        rows = (self._slots.rows[tile.slot] for tile in segments.tiles)
        # Pages bound the rank of all modules: one shape serves the whole step.
        num_rows = max((len(bound.pages) * PAGE_ROWS for bound in rows if bound), default=0)
        return rank_bound(max(MIN_RANK, num_rows))

    def _shrink_config(self, shape: LaunchShape, module: LoraModule) -> tuple[int, ...]:
        columns, in_features = shape.rank * module.num_slices, module.a.shape[2]
        return astuple(self._blocks.shrink(shape.tile_height, shape.num_tiles, columns, in_features))

    def _column_blocks(self, module: LoraModule, block_n: int) -> ColumnBlocks:
        key = (module.index, block_n)
        if key not in self._columns:
            self._columns[key] = cut_columns(module.columns, block_n, module.a.device)
        return self._columns[key]


def _exact_shape(segments: Segments, rank: int) -> LaunchShape:
    height = tile_height(segments)
    return LaunchShape(height, len(cut(segments, height)), rank)
