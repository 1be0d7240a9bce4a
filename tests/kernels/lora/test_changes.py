"""Changes beside the rank rows, against the equation row by row in fp64."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels.lora.changes import TorchEndOps, change_columns
from kernels.lora.pool import LoraModule, SlotRows, SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.side import Affine, EndChange, LowRank, Replacement, SlotSide

TOKENS, WIDTH, RANK = 11, 6, 3
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
BATCHES = [
    [0, 0, 1, None, 2],
    [1, None, 0, 1, 0],  # scattered: rows are gathered
    [None, None],
    [2, 3, None],  # a slot without a side, and one that holds nothing
]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dataclass(frozen=True)
class Sides:
    """Slot 0 has the one change, slot 1 the other, slot 2 no side, slot 3 no adapter."""

    table: SlotTable

    def __init__(self, first: SlotSide, second: SlotSide) -> None:
        table = SlotTable([None] * 4)
        for slot, side in enumerate((first, second, None)):
            table.bind(slot, SlotRows((slot,), ((0,),), side))
        object.__setattr__(self, "table", table)


def affines(dtype: torch.dtype) -> list[Affine]:
    return [
        Affine(scale=random(WIDTH, seed=1), shift=random(WIDTH, seed=2)),
        Affine(shift=random(WIDTH, seed=3)),
    ]


def ends(inside: int, outside: int, weight: tuple[int, int], dtype: torch.dtype) -> list[EndChange]:
    low = LowRank(
        random(inside, RANK, seed=4, dtype=dtype),
        random(RANK, outside, seed=5, dtype=dtype),
        Affine(scale=random(outside, seed=6)),
    )
    return [low, Replacement(random(*weight, seed=7, dtype=dtype))]


def changed(affine: Affine | None, row: Tensor) -> Tensor:
    scale = affine.scale.double() if affine and affine.scale is not None else 1.0
    shift = affine.shift.double() if affine and affine.shift is not None else 0.0
    return row.double() * scale + shift


def check(out: Tensor, base: Tensor, expected: dict[int, Tensor]) -> None:
    for row in range(len(base)):
        if row in expected:
            error = (out[row].double() - expected[row]).abs().max() / expected[row].abs().max()
            assert error < TOLERANCE[base.dtype]
        else:
            assert torch.equal(out[row], base[row])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", BATCHES)
def test_columns_are_scaled_and_shifted_in_the_rows_of_their_slot(batch: list, dtype: torch.dtype):
    one, other = affines(dtype)
    sides = Sides(SlotSide((None, one)), SlotSide((one, other)))
    module = LoraModule(1, torch.empty(0), torch.empty(0), (slice(0, WIDTH),), sides.table)
    base = random(len(batch), WIDTH, seed=8, dtype=dtype)
    out = base.clone()
    change_columns(module, build_segments(batch), out=out)
    by_slot = {0: one, 1: other}
    check(out, base, {r: changed(by_slot[s], base[r]) for r, s in enumerate(batch) if s in by_slot})


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", BATCHES)
def test_embeddings_are_changed_in_the_rows_of_their_slot(batch: list, dtype: torch.dtype):
    low, whole = ends(TOKENS, WIDTH, (TOKENS, WIDTH), dtype)
    sides = Sides(SlotSide((), embedding=low), SlotSide((), embedding=whole))
    ids = torch.arange(len(batch)) + 3
    base = random(len(batch), WIDTH, seed=9, dtype=dtype)
    out = base.clone()
    ops, segments = TorchEndOps(sides.table), build_segments(batch)
    ops.change_embeddings(ids, segments, multiplier=torch.tensor(2.0), out=out)
    expected = {
        row: changed(low.affine, base[row]) + 2 * low.a_t[ids[row]].double() @ low.b.double()
        if slot == 0
        else 2 * whole.weight[ids[row]].double()
        for row, slot in enumerate(batch)
        if slot in (0, 1)
    }
    check(out, base, expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", BATCHES)
def test_logits_are_changed_in_the_rows_of_their_slot(batch: list, dtype: torch.dtype):
    low, whole = ends(WIDTH, TOKENS, (TOKENS, WIDTH), dtype)
    sides = Sides(SlotSide((), head=low), SlotSide((), head=whole))
    x = random(len(batch), WIDTH, seed=10, dtype=dtype)
    base = random(len(batch), TOKENS, seed=11, dtype=dtype)
    out = base.clone()
    ops, segments = TorchEndOps(sides.table), build_segments(batch)
    ops.change_logits(x, segments, torch.arange(len(batch)), out=out)
    expected = {
        row: changed(low.affine, base[row]) + x[row].double() @ low.a_t.double() @ low.b.double()
        if slot == 0
        else whole.weight.double() @ x[row].double()
        for row, slot in enumerate(batch)
        if slot in (0, 1)
    }
    check(out, base, expected)


def test_a_table_knows_which_slots_have_a_side():
    side = SlotSide((Affine(shift=torch.ones(2)),))
    table = SlotTable([None, None])
    table.bind(0, SlotRows((0,), (), side))
    table.bind(1, SlotRows((1,), ()))
    assert table.sided == {0}
    table.bind(0, SlotRows((2,), ()))
    assert not table.sided
    table.bind(1, SlotRows((1,), (), side))
    table.bind(1, None)
    assert not table.sided


def test_bytes_are_those_of_every_tensor():
    low = LowRank(torch.ones(4, 2), torch.ones(2, 3), Affine(torch.ones(3), torch.ones(3)))
    side = SlotSide((None, Affine(torch.ones(5))), low, Replacement(torch.ones(3, 4), torch.ones(3)))
    assert side.num_bytes == 4 * (5 + 8 + 6 + 6 + 12 + 3)
    assert side.rank == 2


def test_columns_are_left_to_kernels_that_scale_and_shift_them_as_they_expand():
    first, second = (SlotSide((affine,)) for affine in affines(torch.float32))
    table = Sides(first, second).table
    columns = (slice(0, WIDTH),)
    module = LoraModule(0, torch.zeros(8, 1, 4), torch.zeros(8, WIDTH), columns, table)
    y, segments = random(2, WIDTH, seed=8), build_segments([0, 1])
    table.columns_in_expand = True
    out = y.clone()
    change_columns(module, segments, out=out)
    assert torch.equal(out, y)
    table.columns_in_expand = False
    change_columns(module, segments, out=out)
    assert not torch.equal(out, y)
