"""Shrink at the head: the rows that give logits times A of their slot.

    hidden[k, r, j] = Σ over input split k of  x[r] · A(slot(r))[j]      for j < rank(slot(r))

As the projections' shrink, but A lies beside the pool, [rank, in_features], at an address of
`slot_ends`. Partial sums of a split are written, never added, up to the next multiple of PAGE with
zeros past the rank; `expand` sums them in order.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the body of a kernel is Triton's language, not Python's)

import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.pool import PAGE_ROWS
from kernels.lora.triton.checks import check_matrix
from kernels.lora.triton.configs import ShrinkConfig
from kernels.lora.triton.ends.checks import check_ends
from kernels.lora.triton.tiles import StepTiles


@triton.jit
def _shrink_kernel(
    x,
    hidden,
    order,
    tiles,
    num_tiles,
    ends,
    in_features,
    stride_x,
    stride_split,
    PAGE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    tile = tl.program_id(2)
    if tile >= tl.load(num_tiles):
        return
    end = ends + tl.load(tiles + tile * 4) * 8
    rank = tl.load(end)
    first = tl.program_id(0) * BLOCK_N
    if first >= rank:
        return

    start = tl.load(tiles + tile * 4 + 1)
    rows = tl.arange(0, BLOCK_M)
    in_tile = rows < tl.load(tiles + tile * 4 + 2)
    row = tl.load(order + start + rows, mask=in_tile, other=0).to(tl.int64)
    column = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
    in_rank = column < rank

    split = tl.program_id(1)
    num_blocks = tl.cdiv(in_features, BLOCK_K)
    blocks_per_split = tl.cdiv(num_blocks, SPLIT_K)
    begin = split * blocks_per_split
    last = tl.minimum(begin + blocks_per_split, num_blocks)
    k = tl.arange(0, BLOCK_K)
    a = tl.multiple_of(tl.load(end + 1).to(x.dtype), 16)
    x_at = x + row[:, None] * stride_x + k[None, :]
    a_at = a + column[None, :] * in_features + k[:, None]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(begin, last):
        done = block * BLOCK_K
        if EVEN_K:
            weight = tl.load(a_at + done, mask=in_rank[None, :], other=0.0)
            value = tl.load(x_at + done, mask=in_tile[:, None], other=0.0)
        else:
            weight = tl.load(
                a_at + done, mask=in_rank[None, :] & (done + k[:, None] < in_features), other=0.0
            )
            value = tl.load(x_at + done, mask=in_tile[:, None] & (done + k[None, :] < in_features), other=0.0)
        acc = tl.dot(value, weight, acc)

    to_page_end = column < tl.cdiv(rank, PAGE) * PAGE
    hidden_at = hidden + split.to(tl.int64) * stride_split + row[:, None] * RANK + column[None, :]
    tl.store(hidden_at, acc, mask=in_tile[:, None] & to_page_end[None, :])


def shrink(x: Tensor, ends: Tensor, step: StepTiles, config: ShrinkConfig, *, out: Tensor) -> None:
    """Write every split's partial sums of x @ Aᵀ for the rows of the step's tiles.

    x     [num_rows, in_features]       fp16 / bf16, rows contiguous
    ends  [num_slots, 8]                int64, see `slot_ends`
    out   [split_k, num_rows, rank]     fp32; rows of tokens without LoRA on the head untouched
    """
    check_matrix("x", x)
    check_ends(ends)
    check_matrix("out", out.flatten(1), floats=True)
    shape, rank, in_features = step.shape, out.shape[2], x.shape[1]
    if not shape.num_tiles:
        return
    _shrink_kernel[(triton.cdiv(rank, config.block_n), config.split_k, shape.num_tiles)](
        x,
        out,
        step.order,
        step.tiles,
        step.num_tiles,
        ends,
        in_features,
        x.stride(0),
        out.stride(0),
        PAGE=PAGE_ROWS,
        RANK=rank,
        BLOCK_M=shape.tile_height,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        SPLIT_K=config.split_k,
        EVEN_K=in_features % config.block_k == 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
