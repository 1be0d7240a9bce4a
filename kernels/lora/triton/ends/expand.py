"""Expand at the head: what shrink left of a row times B of its slot, added to the base's logits.

    y[r] = y[r] · scale + shift + (Σ_k hidden[k, r]) @ B(slot(r))

B is [rank, vocabulary] at an address of `slot_ends`. A vocabulary is hundreds of blocks of columns:
a fixed number of programs shares a tile's blocks in turns, so that a captured graph's surplus
programs are few, and the splits are summed once a program where one block holds the rank.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the body of a kernel is Triton's language, not Python's)

import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton.checks import check_matrix
from kernels.lora.triton.ends.checks import check_ends
from kernels.lora.triton.ends.configs import HeadExpandConfig
from kernels.lora.triton.expand import column_values, sum_splits
from kernels.lora.triton.tiles import StepTiles


@triton.jit
def _weights(b, piece, rank, column, in_row, out_features):
    in_rank = piece < rank
    at = b + piece[:, None] * out_features + column[None, :]
    return tl.load(at, mask=in_rank[:, None] & in_row[None, :], other=0.0)


@triton.jit
def _expand_kernel(
    hidden,
    out,
    order,
    tiles,
    num_tiles,
    ends,
    out_features,
    stride_out,
    stride_split,
    PAGE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    end = ends + tl.load(tiles + tile * 4) * 8
    rank = tl.load(end)
    if rank == 0:
        return
    b = tl.multiple_of(tl.load(end + 2).to(out.dtype), 16)
    scale_at = tl.load(end + 3)
    shift_at = tl.load(end + 4)

    start = tl.load(tiles + tile * 4 + 1)
    rows = tl.arange(0, BLOCK_M)
    in_tile = rows < tl.load(tiles + tile * 4 + 2)
    row = tl.load(order + start + rows, mask=in_tile, other=0).to(tl.int64)
    piece = tl.arange(0, BLOCK_R).to(tl.int64)
    # Shrink wrote zeros up to the end of the page: the mask in whole pages keeps loads wide.
    written = tl.cdiv(rank, PAGE) * PAGE
    wide_split = stride_split.to(tl.int64)
    hidden_at = hidden + row[:, None] * RANK + piece[None, :]
    if RANK <= BLOCK_R:
        total = sum_splits(hidden_at, in_tile[:, None] & (piece[None, :] < written), wide_split, SPLIT_K)
        kept = total.to(out.dtype.element_ty)

    for first in tl.range(tl.program_id(0) * BLOCK_N, out_features, tl.num_programs(0) * BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        in_row = column < out_features
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if RANK <= BLOCK_R:
            acc = tl.dot(kept, _weights(b, piece, rank, column, in_row, out_features), acc)
        else:
            for done in tl.range(0, rank, BLOCK_R):
                weight = _weights(b, done + piece, rank, column, in_row, out_features)
                mask = in_tile[:, None] & (done + piece[None, :] < written)
                total = sum_splits(hidden_at + done, mask, wide_split, SPLIT_K)
                acc = tl.dot(total.to(weight.dtype), weight, acc)
        # Masks and no branches: a load whose mask is false moves nothing.
        scale = column_values(scale_at, column, in_row, out_features, 1.0)
        shift = column_values(shift_at, column, in_row, out_features, 0.0)
        out_at = out + row[:, None] * stride_out + column[None, :]
        mask = in_tile[:, None] & in_row[None, :]
        base = tl.load(out_at, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
        tl.store(out_at, (base + acc).to(out.dtype.element_ty), mask=mask)


def expand(hidden: Tensor, ends: Tensor, step: StepTiles, config: HeadExpandConfig, *, out: Tensor) -> None:
    """Scale and shift `out`, add what `shrink` left in `hidden`, for the rows of the step's tiles.

    hidden  [split_k, num_rows, rank]   fp32
    ends    [num_slots, 8]              int64, see `slot_ends`
    out     [num_rows, vocabulary]      fp16 / bf16; rows without LoRA on the head untouched
    """
    check_matrix("hidden", hidden.flatten(1), floats=True)
    check_ends(ends)
    check_matrix("out", out)
    shape, out_features = step.shape, out.shape[1]
    if not shape.num_tiles:
        return
    programs = min(config.programs, triton.cdiv(out_features, config.block_n))
    _expand_kernel[(programs, shape.num_tiles)](
        hidden,
        out,
        step.order,
        step.tiles,
        step.num_tiles,
        ends,
        out_features,
        out.stride(0),
        hidden.stride(0),
        PAGE=PAGE_ROWS,
        RANK=hidden.shape[2],
        BLOCK_M=shape.tile_height,
        BLOCK_N=config.block_n,
        BLOCK_R=config.block_r,
        SPLIT_K=hidden.shape[0],
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
