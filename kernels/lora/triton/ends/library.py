"""The ends' launches as torch custom operators, as the projections' are in `triton.library`.

Each writes its `out` and returns nothing; the fake implementations refuse shapes that the real ones
would read or write wrongly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.lora.triton.configs import ExpandConfig, ShrinkConfig
from kernels.lora.triton.ends import expand as expand_kernel
from kernels.lora.triton.ends import lookup as lookup_kernel
from kernels.lora.triton.ends import product as product_kernel
from kernels.lora.triton.ends import shrink as shrink_kernel
from kernels.lora.triton.ends.configs import HeadExpandConfig, ProductConfig
from kernels.lora.triton.errors import LaunchRefused
from kernels.lora.triton.tiles import LaunchShape, StepTiles


@torch.library.custom_op("loraplane::end_lookup", mutates_args=("out",))
def end_lookup(
    ids: Tensor,
    multiplier: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    """See `lookup.lookup`; `shape` and `config` are the fields of their classes in order."""
    step = StepTiles(order, tiles, num_tiles, LaunchShape(*shape))
    lookup_kernel.lookup(ids, multiplier, ends, step, ExpandConfig(*config), out=out)


@end_lookup.register_fake
def _(
    ids: Tensor,
    multiplier: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    if ids.shape != out.shape[:1]:
        raise LaunchRefused("ids", tuple(ids.shape), f"are not those of out {tuple(out.shape)}")


@torch.library.custom_op("loraplane::head_shrink", mutates_args=("out",))
def head_shrink(
    x: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    """See `shrink.shrink`."""
    step = StepTiles(order, tiles, num_tiles, LaunchShape(*shape))
    shrink_kernel.shrink(x, ends, step, ShrinkConfig(*config), out=out)


@head_shrink.register_fake
def _(
    x: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    _same_rows(x, out.shape[1], "out")


@torch.library.custom_op("loraplane::head_expand", mutates_args=("out",))
def head_expand(
    hidden: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    """See `expand.expand`."""
    step = StepTiles(order, tiles, num_tiles, LaunchShape(*shape))
    expand_kernel.expand(hidden, ends, step, HeadExpandConfig(*config), out=out)


@head_expand.register_fake
def _(
    hidden: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    _same_rows(out, hidden.shape[1], "hidden")


@torch.library.custom_op("loraplane::head_product", mutates_args=("out",))
def head_product(
    x: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    """See `product.product`."""
    step = StepTiles(order, tiles, num_tiles, LaunchShape(*shape))
    product_kernel.product(x, ends, step, ProductConfig(*config), out=out)


@head_product.register_fake
def _(
    x: Tensor,
    ends: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    out: Tensor,
) -> None:
    _same_rows(x, out.shape[0], "out")


def _same_rows(rows: Tensor, num_rows: int, of: str) -> None:
    if rows.shape[0] != num_rows:
        raise LaunchRefused("rows", rows.shape[0], f"are not the {num_rows} of {of}")
