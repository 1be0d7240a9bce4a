"""Product: logits by a head of the slot's own, instead of the base's.

    y[r] = x[r] @ W'(slot(r))ᵀ + bias(slot(r))

W' is [vocabulary, in_features] at an address of `slot_ends`, read once a tile; a slot without one
leaves after two loads. One accumulator over the inputs from front to back, rounded once. Programs
share a tile's blocks of columns in turns, as in `expand`.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# (the body of a kernel is Triton's language, not Python's)

import triton
import triton.language as tl
from torch import Tensor

from kernels.lora.triton.checks import check_matrix
from kernels.lora.triton.ends.checks import check_ends
from kernels.lora.triton.ends.configs import ProductConfig
from kernels.lora.triton.tiles import StepTiles


@triton.jit
def _product_kernel(
    x,
    out,
    order,
    tiles,
    num_tiles,
    ends,
    in_features,
    out_features,
    stride_x,
    stride_out,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    end = ends + tl.load(tiles + tile * 4) * 8
    own_at = tl.load(end + 5)
    if own_at == 0:
        return
    bias_at = tl.load(end + 6)
    bias = tl.multiple_of(bias_at.to(out.dtype), 16)
    bias_end = tl.where(bias_at == 0, 0, out_features)

    start = tl.load(tiles + tile * 4 + 1)
    rows = tl.arange(0, BLOCK_M)
    in_tile = rows < tl.load(tiles + tile * 4 + 2)
    row = tl.load(order + start + rows, mask=in_tile, other=0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    own = tl.multiple_of(own_at.to(x.dtype), 16)
    x_at = x + row[:, None] * stride_x + k[None, :]

    for first in tl.range(tl.program_id(0) * BLOCK_N, out_features, tl.num_programs(0) * BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        in_row = column < out_features
        own_rows = own + column.to(tl.int64)[None, :] * in_features + k[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for done in tl.range(0, in_features, BLOCK_K):
            if EVEN_K:
                weight = tl.load(own_rows + done, mask=in_row[None, :], other=0.0)
                value = tl.load(x_at + done, mask=in_tile[:, None], other=0.0)
            else:
                in_k = done + k < in_features
                weight = tl.load(own_rows + done, mask=in_row[None, :] & in_k[:, None], other=0.0)
                value = tl.load(x_at + done, mask=in_tile[:, None] & in_k[None, :], other=0.0)
            acc = tl.dot(value, weight, acc)
        shift = tl.load(bias + column, mask=in_row & (column < bias_end), other=0.0).to(tl.float32)
        out_at = out + row[:, None] * stride_out + column[None, :]
        mask = in_tile[:, None] & in_row[None, :]
        tl.store(out_at, (acc + shift[None, :]).to(out.dtype.element_ty), mask=mask)


def product(x: Tensor, ends: Tensor, step: StepTiles, config: ProductConfig, *, out: Tensor) -> None:
    """Write the logits of the step's rows whose slot has a head of its own.

    x     [num_rows, in_features]   fp16 / bf16, rows contiguous
    ends  [num_slots, 8]            int64, see `slot_ends`
    out   [num_rows, vocabulary]    like x; rows of the other slots untouched
    """
    check_matrix("x", x)
    check_ends(ends)
    check_matrix("out", out)
    shape, in_features, out_features = step.shape, x.shape[1], out.shape[1]
    if not shape.num_tiles:
        return
    programs = min(config.programs, triton.cdiv(out_features, config.block_n))
    _product_kernel[(programs, shape.num_tiles)](
        x,
        out,
        step.order,
        step.tiles,
        step.num_tiles,
        ends,
        in_features,
        out_features,
        x.stride(0),
        out.stride(0),
        BLOCK_M=shape.tile_height,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        EVEN_K=in_features % config.block_k == 0,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
