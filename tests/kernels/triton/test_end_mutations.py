"""The ends' numerics can fail: each way to break a kernel is noticed by its cases."""
# ruff: noqa: E501 (a mutation is a line of source and what it becomes)

from pathlib import Path

import pytest
import torch

from kernels.lora.triton.ends import expand, lookup, product, shrink
from tests.kernels.triton.cases import BOUND
from tests.kernels.triton.end_cases import BARE, OWN, EndCase, shared_by, worst_errors
from tests.kernels.triton.test_end_numerics import ONE_ROUNDING, cancelled_sums
from tests.kernels.triton.test_mutations import mutant

# fmt: off
LOOKUP = {
    "surplus programs run": ("tile >= tl.load(num_tiles)", "tile < 0"),
    "the table is read of slot 0": ("ends + tl.load(tiles + tile * 4) * 8", "ends"),
    "tables of a slot's own are left out": ("(rank == 0) & (own_at == 0)", "rank == 0"),
    "the tile's place is ignored": ("order + start + rows", "order + rows"),
    "the token's place is taken for its id": ("tl.load(ids + token, mask=in_tile, other=0)", "token"),
    "columns past the end are written": ("in_row = column < width", "in_row = column < width + 16"),
    "rows past the tile are written": ("mask = in_tile[:, None] & in_row[None, :]\n    out_at", "mask = in_row[None, :] & (rows >= 0)[:, None]\n    out_at"),
    "other tokens are written": ("out + token[:, None]", "out + (start + rows).to(tl.int64)[:, None]"),
    "a row is not multiplied": ("row.to(tl.float32) * factor", "row.to(tl.float32)"),
    "lora is not multiplied": ("acc * factor", "acc"),
    "a row past the rank is read": ("in_rank = piece < rank", "in_rank = piece < rank + 1"),
    "ranks past a block are left out": ("tl.range(0, rank, BLOCK_R)", "tl.range(0, BLOCK_R, BLOCK_R)"),
    "the base is lost": ("(base + acc * factor)", "(acc * factor)"),
    "the base is not scaled": ("* scale[None, :] + shift", "+ shift"),
    "the base is not shifted": ("* scale[None, :] + shift[None, :]", "* scale[None, :]"),
    "scale and shift are swapped": ("shift_at = tl.load(end + 4)", "shift_at = scale_at"),
    "the sum is rounded": ("acc = tl.dot(hidden, weight, acc)", "acc = tl.dot(hidden, weight, acc).to(tl.bfloat16).to(tl.float32)"),
}
SHRINK = {
    "surplus programs run": ("tile >= tl.load(num_tiles)", "tile < 0"),
    "the table is read of slot 0": ("ends + tl.load(tiles + tile * 4) * 8", "ends"),
    "rows past the tile are written": ("in_tile[:, None] & to_page_end[None, :]", "to_page_end[None, :]"),
    "a row past the rank is read": ("in_rank = column < rank", "in_rank = column < rank + 1"),
    "a page is left half written": ("column < tl.cdiv(rank, PAGE) * PAGE", "column < rank"),
    "inputs past the end are read": ("in_tile[:, None] & (done + k[None, :] < in_features)", "in_tile[:, None]"),
    "the tile's place is ignored": ("order + start + rows", "order + rows"),
    "splits overlap": ("begin = split * blocks_per_split", "begin = 0"),
    "a split ends late": ("tl.minimum(begin + blocks_per_split, num_blocks)", "num_blocks"),
    "partial sums are rounded": ("tl.store(hidden_at, acc,", "tl.store(hidden_at, acc.to(tl.bfloat16).to(tl.float32),"),
    "the accumulator is rounded": ("acc = tl.dot(value, weight, acc)", "acc = tl.dot(value, weight, acc).to(tl.bfloat16).to(tl.float32)"),
}
EXPAND = {
    "surplus programs run": ("tile >= tl.load(num_tiles)", "tile < 0"),
    "the table is read of slot 0": ("ends + tl.load(tiles + tile * 4) * 8", "ends"),
    "a slot without lora is computed": ("rank == 0", "rank < 0"),
    "a row past the rank is read": ("in_rank = piece < rank", "in_rank = piece < tl.cdiv(rank, 8) * 8"),
    "a program takes one block alone": ("tl.num_programs(0) * BLOCK_N", "out_features"),
    "columns past the end are written": ("in_row = column < out_features", "in_row = column < out_features + 16"),
    "ranks past a block are left out": ("tl.range(0, rank, BLOCK_R)", "tl.range(0, BLOCK_R, BLOCK_R)"),
    "other rows are written": ("out + row[:, None]", "out + (start + rows).to(tl.int64)[:, None]"),
    "the base is lost": ("(base + acc)", "acc"),
    "the base is not scaled": ("* scale[None, :] + shift", "+ shift"),
    "the base is not shifted": ("* scale[None, :] + shift[None, :]", "* scale[None, :]"),
    "scale and shift are swapped": ("shift_at = tl.load(end + 4)", "shift_at = scale_at"),
    "one split is summed": ("in_tile[:, None] & (piece[None, :] < written), wide_split, SPLIT_K)", "in_tile[:, None] & (piece[None, :] < written), wide_split, 1)"),
}
PRODUCT = {
    "surplus programs run": ("tile >= tl.load(num_tiles)", "tile < 0"),
    "the table is read of slot 1": ("ends + tl.load(tiles + tile * 4) * 8", "ends + 8"),
    "a program takes one block alone": ("tl.num_programs(0) * BLOCK_N", "out_features"),
    "columns past the end are written": ("in_row = column < out_features", "in_row = column < out_features + 16"),
    "inputs past the end are read": ("in_k = done + k < in_features", "in_k = done + k < in_features + 16"),
    "inputs past a block are left out": ("tl.range(0, in_features, BLOCK_K)", "tl.range(0, BLOCK_K, BLOCK_K)"),
    "rows past the tile are written": ("mask = in_tile[:, None] & in_row[None, :]", "mask = (rows >= 0)[:, None] & in_row[None, :]"),
    "other rows are written": ("out + row[:, None]", "out + (start + rows).to(tl.int64)[:, None]"),
    "the bias is left out": ("acc + shift[None, :]", "acc"),
    "a head without a bias reads one": ("& (column < bias_end), other=0.0", "& (column < bias_end), other=1.0"),
    "the accumulator is rounded": ("acc = tl.dot(value, weight, acc)", "acc = tl.dot(value, weight, acc).to(tl.bfloat16).to(tl.float32)"),
}
# fmt: on

# The last token has no adapter: what a broken kernel writes past a row is seen there.
CASES = (
    EndCase(
        300, 200, (11, OWN, 4, BARE), (0, 2, 1, 3, 1, 0, None), torch.bfloat16, affine=True, multiplier=1.5
    ),
    EndCase(528, 136, (OWN, 80), (1, 0, None), torch.bfloat16),
)
BLOCKS = shared_by(2)
KERNELS = {
    "lookup": (lookup, LOOKUP),
    "shrink": (shrink, SHRINK),
    "expand": (expand, EXPAND),
    "product": (product, PRODUCT),
}


def caught() -> bool:
    """Cheapest first: a broken kernel is mostly seen at once."""
    if cancelled_sums(torch.bfloat16) != [1.0] * 4:
        return True
    for case in CASES:
        embeddings, logits = worst_errors([case], captured=True, blocks=BLOCKS)
        if not (embeddings <= ONE_ROUNDING and logits < BOUND):
            return True
    return False


def test_the_kernels_as_they_are_pass():
    assert not caught()


@pytest.mark.parametrize(
    ("kernel", "name"), [(kernel, name) for kernel, (_, faults) in KERNELS.items() for name in faults]
)
def test_a_broken_kernel_is_caught(kernel: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, faults = KERNELS[kernel]
    broken = mutant(module, faults[name], tmp_path)
    monkeypatch.setattr(module, f"_{kernel}_kernel", getattr(broken, f"_{kernel}_kernel"))
    assert caught()
