"""The numerics can fail: each way to break a kernel is noticed by its cases."""
# ruff: noqa: E501 (a mutation is a line of source and what it becomes)

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kernels.lora.triton import expand, shrink
from tests.kernels.triton.cases import BOUND, Case, mixed_ranks, mixed_slots, worst_error
from tests.kernels.triton.test_numerics import cancelled_sums

# fmt: off
SHRINK = {
    "surplus programs run": ("tile >= tl.load(num_tiles)", "tile < 0"),
    "rows past the tile are written": ("in_tile[:, None] & to_page_end[None, :]", "to_page_end[None, :]"),
    "a slice is read to the largest rank": ("has_weight = rank_row < piece_rank", "has_weight = rank_row < rank"),
    "a page is left half written": ("rank_row < tl.cdiv(piece_rank, PAGE) * PAGE", "rank_row < piece_rank"),
    "inputs past the end are read": ("in_tile[:, None] & (done + k[None, :] < in_features)", "in_tile[:, None]"),
    "pages are taken as consecutive": ("page.to(tl.int64) * PAGE", "(page * 0 + tl.load(pages + slot * stride_pages)).to(tl.int64) * PAGE"),
    "the tile's place is ignored": ("order + start + rows", "order + rows"),
    "splits overlap": ("begin = split * blocks_per_split", "begin = 0"),
    "a split ends late": ("tl.minimum(begin + blocks_per_split, num_blocks)", "num_blocks"),
    "slices are swapped": ("piece * RANK + rank_row", "(NUM_SLICES - 1 - piece) * RANK + rank_row"),
    "partial sums are rounded": ("acc, mask=in_tile", "acc.to(tl.bfloat16).to(tl.float32), mask=in_tile"),
    "the accumulator is rounded": ("acc = tl.dot(value, weight, acc)", "acc = tl.dot(value, weight, acc).to(tl.bfloat16).to(tl.float32)"),
}
EXPAND = {
    "surplus programs run": ("tile >= tl.load(num_tiles)", "tile < 0"),
    "nothing is added where there is no rank": ("rank == 0", "rank < 0"),
    "a row past the rank is read": ("has_weight = rank_row < rank", "has_weight = rank_row < tl.cdiv(rank, PAGE) * PAGE"),
    "the last split is left out": ("static_range(1, SPLIT_K)", "static_range(1, SPLIT_K - 1)"),
    "a slice takes another's hidden values": ("+ piece * RANK + rank_row", "+ rank_row"),
    "columns of the next slice are written": ("mask = in_tile[:, None] & in_slice[None, :]", "mask = in_tile[:, None] & (column < out_features)[None, :]"),
    "the base output is lost": ("(base + acc)", "acc"),
    "ranks past a block are left out": ("tl.range(0, rank, BLOCK_R)", "tl.range(0, BLOCK_R, BLOCK_R)"),
    "other tokens are written": ("out + token[:, None]", "out + (start + rows).to(tl.int64)[:, None]"),
    "the rank of slice 0 is used": ("ranks + slot * SLICES_PAD + piece", "ranks + slot * SLICES_PAD"),
    "pages are taken as consecutive": ("page_list + rank_row // PAGE", "page_list + rank_row * 0"),
    "the base is not scaled": ("* scale[None, :] + shift", "+ shift"),
    "the base is not shifted": ("* scale[None, :] + shift[None, :]", "* scale[None, :]"),
    "the sum is scaled": ("(base + acc)", "((base - shift[None, :]) + acc * scale[None, :] + shift[None, :])"),
    "scale and shift are swapped": ("shift_at = tl.load(affines + slot * 2 + 1)", "shift_at = scale_at"),
    "another slot's scale is taken": ("scale_at = tl.load(affines + slot * 2)", "scale_at = tl.load(affines)"),
    "a slot without a scale reads one": ("(column < end), other=neutral", "(column < end), other=0.5"),
}
# fmt: on

CASES = (
    Case(200, (40, 72, 24), mixed_ranks(11, 3), mixed_slots(18, 6), torch.bfloat16),
    Case(1040, (40,), mixed_ranks(80, 1)[:2], (0, 1, None), torch.bfloat16),
    Case(
        40,
        (40, 24),
        (*mixed_ranks(4, 2)[:2], (4, 4), (4, 4)),
        (1, 0, 3, None, 2),
        torch.bfloat16,
        affine=True,
    ),
)


def caught() -> bool:
    return cancelled_sums(torch.bfloat16).tolist() != [1.0, 1.0] or not all(
        worst_error([case], captured=True) < BOUND for case in CASES
    )


def mutant(module: ModuleType, change: tuple[str, str], directory: Path) -> ModuleType:
    old, new = change
    source = Path(module.__file__ or "").read_text()
    assert source.count(old) == 1, f"{old!r} names one place of the kernel"
    # A file, because Triton reads a kernel's source from it.
    file = directory / "mutant.py"
    file.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("mutant", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_kernels_as_they_are_pass():
    assert not caught()


@pytest.mark.parametrize("name", SHRINK)
def test_a_broken_shrink_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = mutant(shrink, SHRINK[name], tmp_path)
    monkeypatch.setattr(shrink, "_shrink_kernel", broken._shrink_kernel)
    assert caught()


@pytest.mark.parametrize("name", EXPAND)
def test_a_broken_expand_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = mutant(expand, EXPAND[name], tmp_path)
    monkeypatch.setattr(expand, "_expand_kernel", broken._expand_kernel)
    assert caught()
