"""The launches as torch custom operators, so that torch.compile and CUDA graphs see them.

`loraplane::lora_shrink` and `loraplane::lora_expand` write their `out` and return nothing; the
fake implementations have nothing to compute but refuse shapes that the real ones would refuse.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.lora.triton import expand as expand_kernel
from kernels.lora.triton import shrink as shrink_kernel
from kernels.lora.triton.columns import ColumnBlocks
from kernels.lora.triton.configs import ExpandConfig, ShrinkConfig
from kernels.lora.triton.errors import LaunchRefused
from kernels.lora.triton.tables import TableView
from kernels.lora.triton.tiles import LaunchShape, StepTiles


@torch.library.custom_op("loraplane::lora_shrink", mutates_args=("out",))
def lora_shrink(
    x: Tensor,
    a: Tensor,
    pages: Tensor,
    ranks: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    dependent: bool,
    out: Tensor,
) -> None:
    """See `shrink.shrink`; `shape` and `config` are the fields of their classes in order."""
    step = StepTiles(order, tiles, num_tiles, LaunchShape(*shape))
    table, blocks = TableView(pages, ranks), ShrinkConfig(*config)
    shrink_kernel.shrink(x, a, table, step, blocks, dependent=dependent, out=out)


@lora_shrink.register_fake
def _(
    x: Tensor,
    a: Tensor,
    pages: Tensor,
    ranks: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    shape: Sequence[int],
    config: Sequence[int],
    dependent: bool,
    out: Tensor,
) -> None:
    if x.shape[1] != a.shape[2]:
        raise LaunchRefused("x", tuple(x.shape), f"has other inputs than a {tuple(a.shape)}")


@torch.library.custom_op("loraplane::lora_expand", mutates_args=("out",))
def lora_expand(
    hidden: Tensor,
    b: Tensor,
    pages: Tensor,
    ranks: Tensor,
    affines: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    blocks: Tensor,
    align: int,
    even: bool,
    shape: Sequence[int],
    config: Sequence[int],
    dependent: bool,
    out: Tensor,
) -> None:
    """See `expand.expand`; `shape` and `config` are the fields of their classes in order."""
    step = StepTiles(order, tiles, num_tiles, LaunchShape(*shape))
    table, columns = TableView(pages, ranks), ColumnBlocks(blocks, align, even)
    blocks_of = ExpandConfig(*config)
    expand_kernel.expand(hidden, b, table, affines, step, columns, blocks_of, dependent=dependent, out=out)


@lora_expand.register_fake
def _(
    hidden: Tensor,
    b: Tensor,
    pages: Tensor,
    ranks: Tensor,
    affines: Tensor,
    order: Tensor,
    tiles: Tensor,
    num_tiles: Tensor,
    blocks: Tensor,
    align: int,
    even: bool,
    shape: Sequence[int],
    config: Sequence[int],
    dependent: bool,
    out: Tensor,
) -> None:
    if out.shape[1] != b.shape[1]:
        raise LaunchRefused("out", tuple(out.shape), f"has other columns than b {tuple(b.shape)}")
