"""Shrink and expand in plain PyTorch: any device, no compiler.

    h[tile] = x[tile] @ A[rows]ᵀ           one product for all slices of the module
    y[tile, columns_i] += h[tile, :, i] @ B[rows, columns_i]

One pair of products a tile, so the cost grows with the distinct adapters of a step, not with its
tokens. Products are in fp32 whatever the pool's dtype: on the CPU a bf16 product of a decode step's
size costs 15-25 µs in set-up alone, the fp32 one 4-11 µs with its conversions (SmolLM2, rank 8-24).
"""

import torch
from torch import Tensor

from kernels.lora.ops import LoraOps, max_rank
from kernels.lora.pool import LoraModule
from kernels.lora.segments import Segments, Tile


class TorchLoraOps(LoraOps):
    """Implements `LoraOps`. The hidden buffer is flat: a tile takes `length * rank * slices` of it."""

    def hidden(self, segments: Segments, module: LoraModule, x: Tensor) -> Tensor:
        """[num_lora_tokens, max_rank * num_slices] fp32."""
        width = max_rank(module, segments) * module.num_slices
        return torch.empty(segments.num_lora_tokens, width, dtype=torch.float32, device=x.device)

    def shrink(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.shrink`."""
        if not out.shape[1]:
            return  # no adapter of this step changes the module
        x = x.float()
        for tile in segments.tiles:
            view = module.view(tile.slot)
            if view is not None:
                a_t = view.a_t.float()
                torch.mm(segments.take(x, tile), a_t, out=_hidden_tile(out, tile, a_t.shape[1]))

    def expand(self, hidden: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.expand`."""
        if not hidden.shape[1]:
            return
        for tile in segments.tiles:
            view = module.view(tile.slot)
            if view is None:
                continue
            by_slice = _hidden_tile(hidden, tile, view.a_t.shape[1]).view(tile.length, view.rank, -1)
            for columns, i, b in view.b:
                _add_product(out[:, columns], by_slice[:, : b.shape[0], i], b.float(), segments, tile)


def _hidden_tile(hidden: Tensor, tile: Tile, width: int) -> Tensor:
    # Tiles of smaller rank use the front of their share, so that each product is contiguous.
    begin = tile.start * hidden.shape[1]
    return hidden.view(-1)[begin : begin + tile.length * width].view(tile.length, width)


def _add_product(out: Tensor, hidden: Tensor, b: Tensor, segments: Segments, tile: Tile) -> None:
    if tile.first_row is None:
        rows = segments.rows(tile)
        out.index_copy_(0, rows, (out.index_select(0, rows) + hidden @ b).to(out.dtype))
    elif out.dtype == torch.float32:
        out[tile.first_row : tile.first_row + tile.length].addmm_(hidden, b)
    else:
        # The sum is in fp32 and rounded once.
        out[tile.first_row : tile.first_row + tile.length].add_(hidden @ b)
