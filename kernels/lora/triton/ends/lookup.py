"""Lookup: the embeddings of the step's tokens, where their adapter has one of its own or LoRA on it.

    y[t] = W'(slot(t))[id(t)] · m                                          a matrix of its own
    y[t] = y[t] · scale + shift + (Aᵀ(slot(t))[id(t)] @ B(slot(t))) · m    LoRA

m is what the base multiplies its rows with. LoRA is summed in fp32 and rounded once; a row of a
matrix is rounded after its product, as the base's own is. A tile is of one slot, so one launch
serves both kinds and a slot with neither leaves after two loads.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the body of a kernel is Triton's language, not Python's)

import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.triton.checks import check_matrix
from kernels.lora.triton.configs import ExpandConfig
from kernels.lora.triton.ends.checks import check_ends, check_ids, check_multiplier
from kernels.lora.triton.expand import column_values
from kernels.lora.triton.tiles import StepTiles


@triton.jit
def _lookup_kernel(
    ids,
    multiplier,
    out,
    order,
    tiles,
    num_tiles,
    ends,
    width,
    stride_out,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    end = ends + tl.load(tiles + tile * 4) * 8
    rank = tl.load(end)
    own_at = tl.load(end + 5)
    if (rank == 0) & (own_at == 0):
        return

    start = tl.load(tiles + tile * 4 + 1)
    rows = tl.arange(0, BLOCK_M)
    in_tile = rows < tl.load(tiles + tile * 4 + 2)
    token = tl.load(order + start + rows, mask=in_tile, other=0).to(tl.int64)
    token_id = tl.load(ids + token, mask=in_tile, other=0)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_row = column < width
    mask = in_tile[:, None] & in_row[None, :]
    out_at = out + token[:, None] * stride_out + column[None, :]
    factor = tl.load(multiplier)

    if rank == 0:
        own = tl.multiple_of(own_at.to(out.dtype), 16)
        row = tl.load(own + token_id[:, None] * width + column[None, :], mask=mask, other=0.0)
        tl.store(out_at, (row.to(tl.float32) * factor).to(out.dtype.element_ty), mask=mask)
    else:
        a = tl.multiple_of(tl.load(end + 1).to(out.dtype), 16)
        b = tl.multiple_of(tl.load(end + 2).to(out.dtype), 16)
        scale_at = tl.load(end + 3)
        shift_at = tl.load(end + 4)
        rank_row = tl.arange(0, BLOCK_R).to(tl.int64)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for done in tl.range(0, rank, BLOCK_R):
            piece = done + rank_row
            in_rank = piece < rank
            hidden = tl.load(
                a + token_id[:, None] * rank + piece[None, :],
                mask=in_tile[:, None] & in_rank[None, :],
                other=0.0,
            )
            weight = tl.load(
                b + piece[:, None] * width + column[None, :],
                mask=in_rank[:, None] & in_row[None, :],
                other=0.0,
            )
            acc = tl.dot(hidden, weight, acc)
        # Masks and no branches: a load whose mask is false moves nothing.
        scale = column_values(scale_at, column, in_row, width, 1.0)
        shift = column_values(shift_at, column, in_row, width, 0.0)
        base = tl.load(out_at, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
        tl.store(out_at, (base + acc * factor).to(out.dtype.element_ty), mask=mask)


def lookup(
    ids: Tensor,
    multiplier: Tensor,
    ends: Tensor,
    step: StepTiles,
    config: ExpandConfig,
    *,
    out: Tensor,
) -> None:
    """Change `out`, the base's embeddings of `ids`, for the tokens of the step's tiles.

    ids         [num_tokens] int64, contiguous
    multiplier  []           fp32, on the device: reading it back would wait
    ends        [num_slots, 8] int64, see `slot_ends`
    out         [num_tokens, width]  fp16 / bf16; rows of tokens without such an adapter untouched
    """
    check_ids(ids)
    check_multiplier(multiplier)
    check_ends(ends)
    check_matrix("out", out)
    shape, width = step.shape, out.shape[1]
    if not shape.num_tiles:
        return
    _lookup_kernel[(triton.cdiv(width, config.block_n), shape.num_tiles)](
        ids,
        multiplier,
        out,
        step.order,
        step.tiles,
        step.num_tiles,
        ends,
        width,
        out.stride(0),
        BLOCK_M=shape.tile_height,
        BLOCK_N=config.block_n,
        BLOCK_R=config.block_r,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
