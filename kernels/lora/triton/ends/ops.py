"""`EndOps` by Triton kernels: one launch for the embedding and three for the head, whatever the adapters.

Owns the device's view of what slots have beside the rank pool. `begin` says what the launches of a
step read; it must come before them, and before the capture or replay of a graph that has them.
"""

from dataclasses import astuple

import torch
from torch import Tensor

from kernels.lora.end_ops import EndOps
from kernels.lora.pool import SlotTable
from kernels.lora.segments import Segments
from kernels.lora.triton.configs import rank_bound
from kernels.lora.triton.ends import library
from kernels.lora.triton.ends.configs import EndBlocks, load_end_blocks
from kernels.lora.triton.ends.slot_ends import SlotEnds
from kernels.lora.triton.tiles import LaunchShape, StepTiles, cut, lay_out, tile_height


class TritonEndOps(EndOps):
    """Implements `TiledEndOps` for the slots of one rank pool; matrices are of `dtype`."""

    def __init__(
        self,
        slots: SlotTable,
        *,
        max_rank: int,
        device: torch.device,
        dtype: torch.dtype,
        blocks: EndBlocks | None = None,
    ) -> None:
        # One bound for all steps: true ranks are on the device, and a bound decides what is compiled.
        self._rank = rank_bound(max_rank)
        self._ends = SlotEnds(slots, device, dtype)
        self._blocks = blocks or load_end_blocks()
        self._tokens: StepTiles | None = None
        self._rows: StepTiles | None = None

    def tiles(self, rows: Segments) -> StepTiles:
        """See `TiledEndOps.tiles`."""
        height = tile_height(rows)
        return lay_out(rows, LaunchShape(height, len(cut(rows, height)), self._rank))

    def begin(self, segments: Segments, tokens: StepTiles | None, rows: StepTiles | None) -> None:
        """See `TiledEndOps.begin`."""
        self._ends.refresh({tile.slot for tile in segments.tiles})
        self._tokens, self._rows = tokens, rows

    def change_embeddings(self, ids: Tensor, segments: Segments, *, multiplier: Tensor, out: Tensor) -> None:
        """See `EndOps.change_embeddings`."""
        step = self._tokens
        if step is None:
            return
        config = self._blocks.lookup(step.shape.tile_height, self._rank)
        library.end_lookup(
            ids, multiplier, self._ends.embedding, *step.tensors(), astuple(step.shape), astuple(config), out
        )

    def change_logits(self, x: Tensor, segments: Segments, rows: Tensor, *, out: Tensor) -> None:
        """See `EndOps.change_logits`."""
        step = self._rows
        if step is None:
            return
        self._add(x, step, out)
        config = self._blocks.product(step.shape.tile_height, step.shape.num_tiles)
        library.head_product(x, self._ends.head, *step.tensors(), astuple(step.shape), astuple(config), out)

    def _add(self, x: Tensor, step: StepTiles, out: Tensor) -> None:
        """LoRA on the head."""
        height, num_tiles = step.shape.tile_height, step.shape.num_tiles
        config, wide = (
            self._blocks.shrink(height, self._rank),
            self._blocks.expand(height, num_tiles, self._rank),
        )
        hidden = self._hidden(x, config.split_k)
        shape, tiles, ends = astuple(step.shape), step.tensors(), self._ends.head
        library.head_shrink(x, ends, *tiles, shape, astuple(config), hidden)
        library.head_expand(hidden, ends, *tiles, shape, astuple(wide), out)

    def _hidden(self, x: Tensor, split_k: int) -> Tensor:
        """[split_k, num_rows, rank] fp32, uninitialised."""
        return torch.empty(split_k, x.shape[0], self._rank, dtype=torch.float32, device=x.device)
