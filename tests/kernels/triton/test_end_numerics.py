"""The ends' kernels against fp64, with NaN in everything that must not be read."""

from dataclasses import replace

import pytest
import torch

from kernels.lora.changes import TorchEndOps
from kernels.lora.pool import SlotRows, SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.side import LowRank, Replacement, SlotSide
from kernels.lora.triton.ends.ops import TritonEndOps
from kernels.lora.triton.errors import LaunchRefused
from tests.kernels.triton.cases import BOUND, mixed_slots
from tests.kernels.triton.end_cases import (
    BARE,
    OWN,
    EndCase,
    begin,
    build,
    errors,
    launched,
    mixed_kinds,
    operations,
    run,
    shared_by,
    worst_errors,
)

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 512)
DTYPES = (torch.bfloat16, torch.float16)
# Of an embedding: its products are of the dtype's own numbers, so the result alone is rounded.
ONE_ROUNDING = 1.0001


def case(rank: int, num_tokens: int, dtype: torch.dtype, vocabulary: int = 272, width: int = 576) -> EndCase:
    slots = mixed_slots(num_tokens, 6, seed=rank + num_tokens)
    return EndCase(vocabulary, width, mixed_kinds(rank), slots, dtype)


def check(*cases: EndCase, captured: bool = False) -> None:
    embeddings, logits = worst_errors(cases, captured=captured)
    assert embeddings <= ONE_ROUNDING
    assert logits < BOUND


@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_equals_fp64(rank: int):
    # Few tokens and inputs: programs of large ranks are what a case costs.
    check(case(rank, 5 if rank > 64 else 12, torch.bfloat16, width=264))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "width"), [(257, 64), (1000, 200), (2048, 1024)])
def test_every_size_equals_fp64(vocabulary: int, width: int, dtype: torch.dtype):
    check(case(11, 7, dtype, vocabulary, width))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lora_is_scaled_and_shifted_and_a_head_of_its_own_has_its_bias(dtype: torch.dtype):
    for rank, captured in ((11, True), (80, False)):
        kinds = (*mixed_kinds(rank)[:3], rank, 2, OWN)
        check(EndCase(300, 200, kinds, mixed_slots(11, 6), dtype, affine=True), captured=captured)


def test_what_the_base_multiplies_its_rows_with_multiplies_every_adapters_too():
    check(replace(case(8, 20, torch.bfloat16), multiplier=33.94, affine=True))


def test_tall_tiles_of_long_segments_equal_fp64():
    slots = (0,) * 70 + (None,) * 3 + (1, 2) * 40
    for rank in (8, 48):
        check(EndCase(200, 320, mixed_kinds(rank), slots, torch.bfloat16, affine=rank > 8))


def test_a_captured_launch_has_surplus_programs_that_do_nothing():
    check(case(16, 24, torch.bfloat16), captured=True)


def test_programs_that_share_a_vocabulary_leave_none_of_it_out():
    for rank in (16, 80):
        for num_programs in (1, 3):
            wide = EndCase(1096, 40, (rank, OWN), (0, 1, None, 1), torch.bfloat16)
            embeddings, logits = worst_errors([wide], blocks=shared_by(num_programs))
            assert max(embeddings, logits) < BOUND


def test_rows_that_give_logits_may_be_fewer_than_the_tokens_and_in_another_order():
    problem = build(small := case(8, 12, torch.bfloat16))
    ops, segments = operations(small, problem), build_segments(small.slots)
    rows = torch.tensor([7, 2, 11, 4])
    tokens, listed = ops.tiles(segments), ops.tiles(segments.of_rows(rows))
    ops.begin(segments, tokens, listed)
    found = problem.logits[rows].clone()
    ops.change_logits(problem.x[rows].contiguous(), segments, rows, out=found)
    _, expected = run(small, problem)
    assert torch.equal(found.view(torch.int16), expected[rows].view(torch.int16))


def test_both_implementations_agree():
    problem = build(small := replace(case(8, 12, torch.bfloat16), affine=True))
    segments, rows = build_segments(small.slots), torch.arange(12)
    plain, out = TorchEndOps(problem.slots), (problem.embeddings.clone(), problem.logits.clone())
    plain.change_embeddings(problem.ids, segments, multiplier=problem.multiplier, out=out[0])
    plain.change_logits(problem.x, segments, rows, out=out[1])
    # The hidden values stay in fp32 there.
    assert max(errors(small, problem, out)) <= ONE_ROUNDING
    assert torch.equal(out[0].view(torch.int16), run(small, problem)[0].view(torch.int16))


def test_two_runs_are_bit_equal_and_a_step_that_changes_no_end_launches_nothing():
    problem = build(mixed := case(16, 40, torch.bfloat16))
    for one, other in zip(run(mixed, problem), run(mixed, problem), strict=True):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16))
    ops, segments = operations(mixed, problem), build_segments(mixed.slots)
    ops.begin(segments, None, None)
    for found, base in zip(
        launched(ops, problem, segments), (problem.embeddings, problem.logits), strict=True
    ):
        assert torch.equal(found.view(torch.int16), base.view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_partial_sums_keep_fp32_precision(dtype: torch.dtype):
    assert cancelled_sums(dtype) == [1.0] * 4


def cancelled_sums(dtype: torch.dtype) -> list[float]:
    """Big + 1 - big, where big + 1 is no number of the dtype: of LoRA within a split and across two, of a
    head of its own, and of LoRA on the embedding."""
    big, inputs = {torch.bfloat16: 256.0, torch.float16: 2048.0}[dtype], 4096
    a = torch.zeros(2, inputs)
    a[0, [0, 70, 140]] = torch.tensor([big, 1.0, -big])
    a[1, [0, 70, 3000]] = torch.tensor([big, 1.0, -big])
    low = LowRank(a.to(dtype).t(), torch.eye(2, 16).to(dtype))
    own = torch.zeros(16, inputs)
    own[0] = a[1]
    table = torch.tensor([[big, 1.0, -big]]).to(dtype)
    looked_up = LowRank(table, torch.ones(3, 16).to(dtype))
    sides = (SlotSide((), looked_up, low), SlotSide((), None, Replacement(own.to(dtype))))
    slots = SlotTable([SlotRows((slot,), (), side) for slot, side in enumerate(sides)])
    ops = TritonEndOps(slots, max_rank=3, device=torch.device("cpu"), dtype=dtype)
    segments = build_segments([0, 1, None])
    step = ops.tiles(segments)
    ops.begin(segments, step, step)
    logits, embeddings = torch.zeros(3, 16, dtype=dtype), torch.zeros(3, 16, dtype=dtype)
    ids, x = torch.zeros(3, dtype=torch.int64), torch.ones(3, inputs, dtype=dtype)
    ops.change_logits(x, segments, torch.arange(3), out=logits)
    ops.change_embeddings(ids, segments, multiplier=torch.tensor(1.0), out=embeddings)
    return [float(value) for value in (logits[0, 0], logits[0, 1], logits[1, 0], embeddings[0, 5])]


def test_addresses_past_two_to_the_31_elements_are_reached():
    width, vocabulary = 4096, 2**19 + 16
    # Reserved, never touched but for the last row.
    own = torch.empty(vocabulary, width, dtype=torch.float16)
    own[-1] = 1 / 64
    slots = SlotTable([SlotRows((0,), (), SlotSide((), embedding=Replacement(own)))])
    ops = TritonEndOps(slots, max_rank=8, device=torch.device("cpu"), dtype=torch.float16)
    segments = build_segments([0])
    step = ops.tiles(segments)
    ops.begin(segments, step, step)
    out = torch.zeros(1, width, dtype=torch.float16)
    last = torch.tensor([vocabulary - 1])
    ops.change_embeddings(last, segments, multiplier=torch.tensor(64.0), out=out)
    assert bool((out == 1).all())


def test_a_slot_is_computed_with_what_it_is_bound_to_now():
    problem = build(small := EndCase(64, 32, (8, OWN, BARE), (0, 1, None, 0, 2), torch.bfloat16))
    # Every id of every slot: each is bound to each.
    everywhere = replace(problem, ids=torch.zeros(5, dtype=torch.int64), x=problem.x.nan_to_num(0.5))
    for rows in problem.slots.rows:
        if rows and rows.side and isinstance(rows.side.embedding, Replacement):
            rows.side.embedding.weight.nan_to_num_(0.5)
        elif rows and rows.side and isinstance(rows.side.embedding, LowRank):
            rows.side.embedding.a_t.nan_to_num_(0.5)
    ops, bound = operations(small, problem), list(problem.slots.rows)
    segments = build_segments(small.slots)
    for rows in (bound, [bound[1], bound[2], bound[0]], [None, bound[0], bound[1]], bound):
        for slot, row in enumerate(rows):
            problem.slots.bind(slot, row)
        begin(ops, small)
        embeddings, logits = errors(small, everywhere, launched(ops, everywhere, segments))
        assert embeddings <= ONE_ROUNDING
        assert logits < BOUND


def test_a_matrix_that_the_kernels_cannot_read_is_refused():
    whole, low = torch.ones(64, 32), torch.ones(64, 4)
    half = torch.half
    wrong = {
        "weight": [whole.half().t(), whole, torch.ones(2050, dtype=half)[1:2049].view(64, 32)],
        "A": [low.half().t().contiguous().t(), low],
    }
    for name, tensors in wrong.items():
        for tensor in tensors:
            change = (
                Replacement(tensor) if name == "weight" else LowRank(tensor, torch.ones(4, 32, dtype=half))
            )
            slots = SlotTable([SlotRows((0,), (), SlotSide((), embedding=change))])
            ops = TritonEndOps(slots, max_rank=8, device=torch.device("cpu"), dtype=half)
            segments = build_segments([0])
            with pytest.raises(LaunchRefused, match=f"{name}:"):
                ops.begin(segments, None, None)


def test_a_layout_that_the_kernels_cannot_read_is_refused():
    problem = build(small := case(8, 4, torch.bfloat16))
    ops, segments, rows = operations(small, problem), build_segments(small.slots), torch.arange(4)
    begin(ops, small)
    for ids in (problem.ids.int(), torch.zeros(8, dtype=torch.int64)[::2]):
        with pytest.raises(LaunchRefused, match="ids"):
            ops.change_embeddings(ids, segments, multiplier=problem.multiplier, out=problem.embeddings)
    with pytest.raises(LaunchRefused, match="multiplier"):
        ops.change_embeddings(
            problem.ids, segments, multiplier=problem.multiplier.double(), out=problem.embeddings
        )
    with pytest.raises(LaunchRefused, match="contiguous rows"):
        ops.change_logits(problem.x.t().contiguous().t(), segments, rows, out=problem.logits)
    with pytest.raises(LaunchRefused, match="dtype"):
        ops.change_logits(problem.x.float(), segments, rows, out=problem.logits)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "width"), [(1000, 576), (2048, 1024)])
def test_the_whole_grid_of_ranks_and_tokens_equals_fp64(vocabulary: int, width: int, dtype: torch.dtype):
    for rank in RANKS:
        # Interpreted programs of large ranks are what a case costs.
        for num_tokens in (1, 7, 64, 300) if rank <= 64 else (1, 7):
            plain = case(rank, num_tokens, dtype, vocabulary, width)
            check(plain, replace(plain, affine=True, multiplier=3.0))
