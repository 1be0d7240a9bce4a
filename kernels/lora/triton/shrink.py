"""Shrink: the tokens of a tile times the A rows of its slot, all slices of the module at once.

    hidden[k, t, i, j] = Σ over input split k of  x[t] · A[row_j(slot(t)), i]      for j < rank_i(slot(t))

Column c of a tile is (rank row c // num_slices, slice c % num_slices): the pool's own order, so a
page of A is one contiguous run. Partial sums of a split are written, never added: `expand` sums
them in a fixed order, so there are no atomics and nothing to zero. Rows are written up to the end
of their page, with zeros past the true rank, so that `expand` loads them 32 bytes at a time.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the body of a kernel is Triton's language, not Python's)

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton.checks import check_matrix, check_pool
from kernels.lora.triton.configs import ShrinkConfig
from kernels.lora.triton.tables import TableView
from kernels.lora.triton.tiles import StepTiles


@triton.jit
def _shrink_kernel(
    x,
    a,
    hidden,
    order,
    tiles,
    num_tiles,
    pages,
    ranks,
    in_features,
    stride_x,
    stride_pages,
    stride_split,
    NUM_SLICES: tl.constexpr,
    SLICES_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    # A dependent launch starts before its predecessor ends: every way out waits for it first, so
    # that "this launch is over" implies "all before it are over" for whoever waits next.
    tile = tl.program_id(2)
    if tile >= tl.load(num_tiles):
        if DEPENDENT:
            gdc_wait()
        return
    slot = tl.load(tiles + tile * 4)
    slices = tl.arange(0, SLICES_PAD)
    rank = tl.max(tl.load(ranks + slot * SLICES_PAD + slices), axis=0)
    num_columns = tl.cdiv(rank, PAGE) * PAGE * NUM_SLICES
    first_column = tl.program_id(0) * BLOCK_N
    if first_column >= num_columns:
        if DEPENDENT:
            gdc_wait()
        return

    start = tl.load(tiles + tile * 4 + 1)
    rows = tl.arange(0, BLOCK_M)
    in_tile = rows < tl.load(tiles + tile * 4 + 2)
    token = tl.load(order + start + rows, mask=in_tile, other=0).to(tl.int64)

    column = first_column + tl.arange(0, BLOCK_N)
    rank_row = column // NUM_SLICES
    piece = column % NUM_SLICES
    piece_rank = tl.load(ranks + slot * SLICES_PAD + piece)
    has_weight = rank_row < piece_rank
    page = tl.load(pages + slot * stride_pages + rank_row // PAGE, mask=has_weight, other=0)
    pool_row = page.to(tl.int64) * PAGE + rank_row % PAGE

    split = tl.program_id(1)
    num_blocks = tl.cdiv(in_features, BLOCK_K)
    blocks_per_split = tl.cdiv(num_blocks, SPLIT_K)
    begin = split * blocks_per_split
    end = tl.minimum(begin + blocks_per_split, num_blocks)
    k = tl.arange(0, BLOCK_K)
    x_at = x + token[:, None] * stride_x + k[None, :]
    a_at = a + (pool_row * NUM_SLICES + piece)[None, :] * in_features + k[:, None]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if DEPENDENT:
        gdc_wait()  # x is what the launch before this one writes
    for block in range(begin, end):
        done = block * BLOCK_K
        if EVEN_K:
            weight = tl.load(a_at + done, mask=has_weight[None, :], other=0.0)
            value = tl.load(x_at + done, mask=in_tile[:, None], other=0.0)
        else:
            weight = tl.load(
                a_at + done, mask=has_weight[None, :] & (done + k[:, None] < in_features), other=0.0
            )
            value = tl.load(x_at + done, mask=in_tile[:, None] & (done + k[None, :] < in_features), other=0.0)
        acc = tl.dot(value, weight, acc)

    if DEPENDENT:
        gdc_launch_dependents()
    to_page_end = rank_row < tl.cdiv(piece_rank, PAGE) * PAGE
    hidden_at = hidden + split.to(tl.int64) * stride_split + token[:, None] * (NUM_SLICES * RANK)
    tl.store(
        hidden_at + (piece * RANK + rank_row)[None, :], acc, mask=in_tile[:, None] & to_page_end[None, :]
    )


def shrink(
    x: Tensor,
    a: Tensor,
    table: TableView,
    step: StepTiles,
    config: ShrinkConfig,
    *,
    dependent: bool,
    out: Tensor,
) -> None:
    """Write every split's partial sums of x @ Aᵀ for the tokens of the step's tiles.

    x    [num_tokens, in_features]                   fp16 / bf16, rows contiguous
    a    [num_rows, num_slices, in_features]         like x, contiguous
    out  [split_k, num_tokens, num_slices, rank]     fp32; rows of tokens without an adapter untouched
    """
    check_matrix("x", x)
    check_pool("a", a, x.dtype)
    check_matrix("out", out.flatten(1), floats=True)
    num_slices, in_features = a.shape[1:]
    shape = step.shape
    rank = out.shape[3]
    # A step without adapters launches nothing.
    if not shape.num_tiles:
        return
    grid = (triton.cdiv(shape.rank * num_slices, config.block_n), config.split_k, shape.num_tiles)
    _shrink_kernel[grid](
        x,
        a,
        out,
        step.order,
        step.tiles,
        step.num_tiles,
        table.pages,
        table.ranks,
        in_features,
        x.stride(0),
        table.pages.stride(0),
        out.stride(0),
        NUM_SLICES=num_slices,
        SLICES_PAD=table.ranks.shape[1],
        PAGE=PAGE_ROWS,
        RANK=rank,
        BLOCK_M=shape.tile_height,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLIT_K=config.split_k,
        EVEN_K=in_features % config.block_k == 0,
        DEPENDENT=dependent,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **({"launch_pdl": True} if dependent else {}),
    )
