"""Expand: what shrink left of a tile times the B rows of its slot, added to the base output.

    y[t, columns_i] = y[t, columns_i] · scale + shift + (Σ_k hidden[k, t, i]) @ B[rows(slot(t)), columns_i]

Scale and shift are DoRA's and lora_bias', [out_features] fp32 of the slot; a slot without reads none.
The splits are summed in order in fp32, rounded once for the tensor cores, and the sum with the
base output is in fp32 and rounded once. A block of columns belongs to one slice, so one launch
serves all slices of the module, of whatever widths and ranks.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the body of a kernel is Triton's language, not Python's)

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton.checks import check_matrix
from kernels.lora.triton.columns import ColumnBlocks
from kernels.lora.triton.configs import ExpandConfig
from kernels.lora.triton.tables import TableView
from kernels.lora.triton.tiles import StepTiles


@triton.jit
def sum_splits(hidden_at, mask, stride_split, SPLIT_K: tl.constexpr):
    """What all splits left at a place, in their order."""
    total = tl.load(hidden_at, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLIT_K):
        total += tl.load(hidden_at + split * stride_split, mask=mask, other=0.0)
    return total


@triton.jit
def _weights(b, page_list, rank_row, rank, column, out_features, columns_mask, PAGE: tl.constexpr):
    has_weight = rank_row < rank
    page = tl.load(page_list + rank_row // PAGE, mask=has_weight, other=0)
    pool_row = page.to(tl.int64) * PAGE + rank_row % PAGE
    at = b + pool_row[:, None] * out_features + column[None, :]
    return tl.load(at, mask=has_weight[:, None] & columns_mask[None, :], other=0.0)


@triton.jit
def column_values(address, column, in_slice, out_features, neutral):
    """Columns of an fp32 vector at an address; `neutral` where it is 0."""
    values = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)
    end = tl.where(address == 0, 0, out_features)
    return tl.load(values + column, mask=in_slice & (column < end), other=neutral)


@triton.jit
def _expand_kernel(
    hidden,
    b,
    out,
    order,
    tiles,
    num_tiles,
    pages,
    ranks,
    affines,
    blocks,
    out_features,
    stride_out,
    stride_pages,
    stride_split,
    NUM_SLICES: tl.constexpr,
    SLICES_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    RANK: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    # Every way out of a dependent launch waits first: see `shrink`.
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        if DEPENDENT:
            gdc_wait()
        return
    slot = tl.load(tiles + tile * 4)
    block = blocks + tl.program_id(0) * 4
    piece = tl.load(block)
    rank = tl.load(ranks + slot * SLICES_PAD + piece)
    if rank == 0:
        if DEPENDENT:
            gdc_wait()
        return
    scale_at = tl.load(affines + slot * 2)
    shift_at = tl.load(affines + slot * 2 + 1)

    start = tl.load(tiles + tile * 4 + 1)
    rows = tl.arange(0, BLOCK_M)
    in_tile = rows < tl.load(tiles + tile * 4 + 2)
    token = tl.load(order + start + rows, mask=in_tile, other=0).to(tl.int64)

    # The hint is what makes 16-byte accesses of a block's columns.
    column = tl.multiple_of(tl.load(block + 1), ALIGN) + tl.arange(0, BLOCK_N)
    if EVEN_N:
        in_slice = tl.full((BLOCK_N,), True, tl.int1)
    else:
        in_slice = column < tl.multiple_of(tl.load(block + 2), ALIGN)

    page_list = pages + slot * stride_pages
    rank_row = tl.arange(0, BLOCK_R)
    # Shrink wrote zeros up to the end of the last page: the mask in whole pages keeps loads wide.
    written = tl.cdiv(rank, PAGE) * PAGE
    wide_split = stride_split.to(tl.int64)
    hidden_at = hidden + token[:, None] * (NUM_SLICES * RANK) + piece * RANK + rank_row[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if RANK <= BLOCK_R:
        # The weights do not depend on shrink: their loads overlap its end.
        weight = _weights(b, page_list, rank_row, rank, column, out_features, in_slice, PAGE)
        if DEPENDENT:
            gdc_wait()
        total = sum_splits(hidden_at, in_tile[:, None] & (rank_row[None, :] < written), wide_split, SPLIT_K)
        acc = tl.dot(total.to(weight.dtype), weight, acc)
    else:
        if DEPENDENT:
            gdc_wait()
        for done in tl.range(0, rank, BLOCK_R):
            row = done + rank_row
            weight = _weights(b, page_list, row, rank, column, out_features, in_slice, PAGE)
            mask = in_tile[:, None] & (row[None, :] < written)
            total = sum_splits(hidden_at + done, mask, wide_split, SPLIT_K)
            acc = tl.dot(total.to(weight.dtype), weight, acc)

    if DEPENDENT:
        gdc_launch_dependents()
    out_at = out + token[:, None] * stride_out + column[None, :]
    mask = in_tile[:, None] & in_slice[None, :]
    # Masks and no branches: a load whose mask is false moves nothing.
    scale = column_values(scale_at, column, in_slice, out_features, 1.0)
    shift = column_values(shift_at, column, in_slice, out_features, 0.0)
    base = tl.load(out_at, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    tl.store(out_at, (base + acc).to(out.dtype.element_ty), mask=mask)


def expand(
    hidden: Tensor,
    b: Tensor,
    table: TableView,
    affines: Tensor,
    step: StepTiles,
    columns: ColumnBlocks,
    config: ExpandConfig,
    *,
    dependent: bool,
    out: Tensor,
) -> None:
    """Scale and shift `out`, add what `shrink` left in `hidden`, for the tokens of the step's tiles.

    hidden  [split_k, num_tokens, num_slices, rank]  fp32
    b       [num_rows, out_features]                 fp16 / bf16, contiguous, scaling folded in
    affines [num_slots, 2]                           int64, see `tables`
    out     [num_tokens, out_features]               like b; rows of tokens without an adapter untouched
    """
    check_matrix("hidden", hidden.flatten(1), floats=True)
    check_matrix("b", b)
    check_matrix("out", out)
    shape = step.shape
    if not shape.num_tiles:
        return
    _expand_kernel[(columns.num_blocks, shape.num_tiles)](
        hidden,
        b,
        out,
        step.order,
        step.tiles,
        step.num_tiles,
        table.pages,
        table.ranks,
        affines,
        columns.blocks,
        b.shape[1],
        out.stride(0),
        table.pages.stride(0),
        hidden.stride(0),
        NUM_SLICES=hidden.shape[2],
        SLICES_PAD=table.ranks.shape[1],
        PAGE=PAGE_ROWS,
        RANK=hidden.shape[3],
        ALIGN=columns.align,
        BLOCK_M=shape.tile_height,
        BLOCK_N=config.block_n,
        BLOCK_R=config.block_r,
        SPLIT_K=hidden.shape[0],
        EVEN_N=columns.even,
        DEPENDENT=dependent,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **({"launch_pdl": True} if dependent else {}),
    )
