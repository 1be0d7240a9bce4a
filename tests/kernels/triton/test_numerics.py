"""Both kernels against fp64, with NaN in everything that must not be read."""

from dataclasses import replace

import pytest
import torch

from kernels.lora.pool import LoraModule, SlotRows, SlotTable
from kernels.lora.reference import reference_lora
from kernels.lora.segments import build_segments
from kernels.lora.side import Affine, SlotSide
from kernels.lora.triton.errors import LaunchRefused
from kernels.lora.triton.ops import TritonLoraOps
from tests.kernels.triton.cases import (
    BOUND,
    Case,
    build,
    error,
    mixed_ranks,
    mixed_slots,
    operations,
    run,
    worst_error,
)

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 512)
WIDTHS = {576: (576, 192, 192), 4096: (4096, 1024, 1024), 14336: (4096,)}
DTYPES = (torch.bfloat16, torch.float16)


def case(in_features: int, rank: int, num_tokens: int, dtype: torch.dtype) -> Case:
    ranks = mixed_ranks(rank, len(WIDTHS[in_features]))
    slots = mixed_slots(num_tokens, len(ranks), seed=rank + num_tokens)
    return Case(in_features, WIDTHS[in_features], ranks, slots, dtype)


@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_equals_fp64(rank: int):
    # One case: a pool of 512 rank rows is what a case costs.
    ranks = (*mixed_ranks(rank, 2)[:3], None) if rank > 64 else mixed_ranks(rank, 2)
    slots = mixed_slots(7 if rank > 64 else 64, len(ranks), seed=rank)
    assert worst_error([Case(576, (128, 64), ranks, slots, torch.bfloat16)]) < BOUND


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("in_features", WIDTHS)
def test_every_width_equals_fp64(in_features: int, num_tokens: int, dtype: torch.dtype):
    assert worst_error([case(in_features, 24, num_tokens, dtype)]) < BOUND


def test_tall_tiles_of_long_segments_equal_fp64():
    slots = (0,) * 70 + (None,) * 3 + (2, 1) * 40
    for rank in (8, 48):
        long = Case(320, (192, 64, 64), mixed_ranks(rank, 3), slots, torch.bfloat16)
        assert worst_error([long]) < BOUND


def test_a_captured_launch_has_surplus_programs_that_do_nothing():
    assert worst_error([case(576, 16, 24, torch.bfloat16)], captured=True) < BOUND


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_are_scaled_and_shifted_before_lora_is_added(dtype: torch.dtype):
    # Of DoRA and of biases: with either, with both, with none, and not where a slice has no rank.
    for rank, captured in ((11, False), (16, True), (80, False)):
        ranks = (*mixed_ranks(rank, 2)[:3], (rank, rank), None)
        mixed = Case(200, (72, 40), ranks, mixed_slots(20, len(ranks)), dtype, affine=True)
        assert worst_error([mixed], captured=captured) < BOUND
    tall = Case(64, (192, 64), mixed_ranks(8, 2), (0,) * 70 + (None,) * 3 + (2, 1) * 40, dtype, affine=True)
    assert worst_error([tall]) < BOUND


def test_a_slot_bound_anew_takes_its_own_scale_and_shift():
    problem = build(small := Case(64, (32,), ((8,), (8,)), (0, 1, None), torch.bfloat16, affine=True))
    ops, module, slots = operations(small, problem), problem.module, problem.module.slots
    bound = list(slots.rows)
    for rows in (bound, [bound[1], bound[0]], bound):
        for slot, row in enumerate(rows):
            slots.bind(slot, row)
        segments, out = build_segments(small.slots), problem.base.clone()
        ops.add(problem.x, module, segments, out=out)
        assert error(small, problem, out) < BOUND


def test_a_scale_that_the_kernel_cannot_read_is_refused():
    problem = build(small := Case(64, (32,), ((8,),), (0,), torch.bfloat16, affine=True))
    slots, segments = problem.module.slots, build_segments((0,))
    (rows,) = slots.rows
    assert rows is not None
    for scale in (torch.ones(32, dtype=torch.half), torch.ones(64)[::2], torch.ones(33)[1:]):
        side = SlotSide((None, Affine(scale)))
        slots.bind(0, SlotRows(rows.pages, rows.ranks, side))
        with pytest.raises(LaunchRefused, match="scale"):
            operations(small, problem).prepare(segments)


@pytest.mark.parametrize("in_features", [40, 200, 328])
def test_sizes_that_no_block_divides_are_masked(in_features: int):
    odd = Case(in_features, (40, 72, 8, 24), mixed_ranks(11, 4), mixed_slots(20, 6), torch.bfloat16)
    assert worst_error([odd]) < BOUND


def test_the_oracles_agree():
    small = Case(40, (24, 8), mixed_ranks(11, 2), mixed_slots(9, 6), torch.float16)
    problem = build(small)
    out = reference_lora(problem.x, problem.module, small.slots, problem.base)
    assert error(small, problem, out.half()) <= 1.0  # one rounding


def test_a_step_without_adapters_changes_nothing_and_two_runs_are_bit_equal():
    base_only = Case(40, (24, 8), mixed_ranks(4, 2), (None,) * 5, torch.bfloat16)
    problem = build(base_only)
    assert error(base_only, problem, run(base_only, problem)) == 0.0
    mixed = case(576, 16, 64, torch.bfloat16)
    problem = build(mixed)
    assert torch.equal(run(mixed, problem), run(mixed, problem))


@pytest.mark.parametrize("dtype", DTYPES)
def test_partial_sums_keep_fp32_precision(dtype: torch.dtype):
    assert cancelled_sums(dtype).tolist() == [1.0, 1.0]


def cancelled_sums(dtype: torch.dtype) -> torch.Tensor:
    """Big + 1 - big, where big + 1 is no number of the dtype: within one split, and across the two."""
    big, inputs = {torch.bfloat16: 256.0, torch.float16: 2048.0}[dtype], 1024
    a = torch.zeros(8, 1, inputs)
    a[0, 0, [0, 70, 140]] = torch.tensor([big, 1.0, -big])
    a[1, 0, [0, 70, 600]] = torch.tensor([big, 1.0, -big])
    b = torch.zeros(8, 16)
    b[0, 0] = b[1, 1] = 1.0
    slots = SlotTable([SlotRows((0,), ((2,),))])
    module = LoraModule(0, a.to(dtype), b.to(dtype), (slice(0, 16),), slots)
    ops, segments = TritonLoraOps([module], max_rank=8, max_tokens=1), build_segments([0])
    x, out = torch.ones(1, inputs, dtype=dtype), torch.zeros(1, 16, dtype=dtype)
    hidden = ops.hidden(segments, module, x)
    assert hidden.shape[0] == 2, "two splits"
    ops.shrink(x, module, segments, out=hidden)
    ops.expand(hidden, module, segments, out=out)
    return out[0, :2].float()


def test_addresses_past_two_to_the_31_elements_are_reached():
    width, rows = 4096, 2**19 + 16
    # Reserved, never touched but for the last page.
    a, b = torch.empty(rows, 1, width, dtype=torch.float16), torch.empty(rows, width, dtype=torch.float16)
    a[-8:], b[-8:] = 1 / width, 1.0
    slots = SlotTable([SlotRows((rows // 8 - 1,), ((8,),))])
    module = LoraModule(0, a, b, (slice(0, width),), slots)
    ops, segments = TritonLoraOps([module], max_rank=8, max_tokens=1), build_segments([0])
    x, out = torch.ones(1, width, dtype=torch.float16), torch.zeros(1, width, dtype=torch.float16)
    hidden = ops.hidden(segments, module, x)
    ops.shrink(x, module, segments, out=hidden)
    ops.expand(hidden, module, segments, out=out)
    assert bool((out == 8).all())


def test_a_slot_is_computed_with_what_it_is_bound_to_now():
    problem = build(small := Case(64, (32,), ((8,), (16,)), (0, 0, None, 1), torch.bfloat16))
    ops, module, slots = operations(small, problem), problem.module, problem.module.slots
    bound = list(slots.rows)
    for rows in (bound, [None, bound[1]], [bound[1], bound[0]]):
        for slot, row in enumerate(rows):
            slots.bind(slot, row)
        segments, out = build_segments(small.slots), problem.base.clone()
        hidden = ops.hidden(segments, module, problem.x)
        ops.shrink(problem.x, module, segments, out=hidden)
        ops.expand(hidden, module, segments, out=out)
        expected = reference_lora(problem.x, module, small.slots, problem.base)
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_layout_that_the_kernels_cannot_read_is_refused():
    problem = build(small := Case(64, (32,), ((8,),), (0, 0), torch.bfloat16))
    ops, segments, module = operations(small, problem), build_segments(small.slots), problem.module
    hidden = ops.hidden(segments, module, problem.x)
    with pytest.raises(LaunchRefused, match="contiguous rows"):
        ops.shrink(torch.ones(64, 2, dtype=torch.bfloat16).t(), module, segments, out=hidden)
    with pytest.raises(LaunchRefused, match="dtype"):
        ops.shrink(problem.x.float(), module, segments, out=hidden)
    with pytest.raises(LaunchRefused, match="dtype"):
        ops.shrink(problem.x.half(), module, segments, out=hidden)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", WIDTHS)
def test_the_whole_grid_of_ranks_and_tokens_equals_fp64(in_features: int, dtype: torch.dtype):
    for rank in RANKS:
        for num_tokens in (1, 7, 64, 300):
            plain = case(in_features, rank, num_tokens, dtype)
            # With few tokens both: a pool of large ranks is what a case costs.
            affine = replace(plain, affine=True)
            assert worst_error([plain, affine] if num_tokens <= 7 else [affine]) < BOUND
