from functools import partial

import pytest
import torch

from kernels.cpu.native import LEVELS
from kernels.cpu.native_lora import NativeLoraOps
from kernels.lora.ops import LoraOps, add_lora
from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows, SlotTable
from kernels.lora.reference import reference_lora
from kernels.lora.segments import build_segments
from kernels.lora.torch_ops import TorchLoraOps
from tests.kernels.cpu.implementations import IMPLEMENTATIONS, kernels_at

NUM_PAGES = 66
# Module 0 is another module: its ranks must not be taken.
SLOTS = [
    SlotRows((2,), ((8, 8), (8, 8))),
    SlotRows((7, 1), ((1, 1), (11, 3))),  # scattered pages, odd ranks
    SlotRows((0,), ((8, 8), (0, 0))),  # does not change this module
    None,
    SlotRows((3,), ((1, 1), (0, 1))),  # one slice only
    SlotRows(tuple(range(65, 1, -1)), ((1, 1), (512, 320))),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
BATCHES = {
    "one token": [0],
    "mixed with base": [None, 0, 1, 4, None],
    "scattered": [1, 4, 1, None, 2, 0, 1],
    "nothing to add": [2, None, 2, 3],
    "a long segment": [1] * 37,
    "large ranks": [5, 0, 5],
}


def implementation(name: str) -> LoraOps:
    return TorchLoraOps() if name == "torch" else NativeLoraOps(kernels_at(name), TorchLoraOps())


def poisoned_module(
    dtype: torch.dtype, slots: list[int | None], in_features: int = 40, sizes: tuple[int, int] = (24, 37)
) -> LoraModule:
    """Random numbers at the true ranks of the slots in use, NaN everywhere else."""
    generator = torch.Generator().manual_seed(0)
    columns = (slice(0, sizes[0]), slice(sizes[0], sum(sizes)))
    a = torch.full((NUM_PAGES * PAGE_ROWS, 2, in_features), float("nan"))
    b = torch.full((NUM_PAGES * PAGE_ROWS, sum(sizes)), float("nan"))
    for slot in sorted({slot for slot in slots if slot is not None}):
        bound = SLOTS[slot]
        for i, rank in enumerate(bound.ranks[1] if bound else ()):
            rows = bound.row_index(rank)
            a[rows, i] = torch.randn(rank, in_features, generator=generator)
            b[rows, columns[i]] = torch.randn(rank, sizes[i], generator=generator)
    return LoraModule(1, a.to(dtype), b.to(dtype), columns, SlotTable(list(SLOTS)))


def inputs(module: LoraModule, num_tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_tokens, module.a.shape[2], generator=generator).to(dtype)
    return x, torch.randn(num_tokens, module.b.shape[1], generator=generator).to(dtype)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pool_dtype", TOLERANCE)
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_fp64_reads_nothing_past_the_true_rank_and_leaves_base_rows_bit_equal(
    name: str, dtype: torch.dtype, pool_dtype: torch.dtype, batch: str
):
    slots = BATCHES[batch]
    module = poisoned_module(pool_dtype, slots)
    x, base = inputs(module, len(slots), dtype)
    out = base.clone()
    add_lora(implementation(name), x, module, build_segments(slots), out=out)

    expected = reference_lora(x, module, slots, base)
    assert torch.isfinite(expected).all()
    assert (out.double() - expected).abs().max() / expected.abs().max() < TOLERANCE[dtype]
    without = [row for row, slot in enumerate(slots) if slot in (None, 2, 3)]
    assert torch.equal(out[without], base[without])


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("in_features", [1, 37, 576])
@pytest.mark.parametrize("sizes", [(1, 7), (64, 347)])
def test_any_width_equals_fp64(name: str, dtype: torch.dtype, in_features: int, sizes: tuple[int, int]):
    slots = [0, 1, 1, 1, 1, 1]
    module = poisoned_module(dtype, slots, in_features, sizes)
    x, base = inputs(module, len(slots), dtype)
    out = base.clone()
    add_lora(implementation(name), x, module, build_segments(slots), out=out)
    expected = reference_lora(x, module, slots, base)
    assert (out.double() - expected).abs().max() / expected.abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("in_features", [40, 64])  # with an end that fills no vector, and without
def test_a_token_has_the_same_bits_in_every_batch(name: str, dtype: torch.dtype, in_features: int):
    module, ops = poisoned_module(dtype, [0, 1], in_features, (24, 301)), implementation(name)
    x, base = inputs(module, 37, dtype)
    together = base.clone()
    add_lora(ops, x, module, build_segments([1, 0, None] * 12 + [1]), out=together)
    for row in (0, 36):  # of the adapter's 25 tokens the first, beside others in registers, and the last
        alone = base[row : row + 1].clone()
        add_lora(ops, x[row : row + 1], module, build_segments([1]), out=alone)
        assert torch.equal(alone[0], together[row])


def test_how_many_threads_share_the_tokens_of_an_adapter_changes_no_bits(
    request: pytest.FixtureRequest,
):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    module, ops = poisoned_module(torch.bfloat16, [1], 64), implementation("plain")
    x, base = inputs(module, 21, torch.bfloat16)
    found = []
    for num_threads in (1, 2, 5):  # units of 16, 16 and 4 tokens
        torch.set_num_threads(num_threads)
        found.append(base.clone())
        add_lora(ops, x, module, build_segments([1] * 21), out=found[-1])
    assert all(torch.equal(out, found[0]) for out in found)
    assert not torch.equal(found[0], base)


@pytest.mark.parametrize("name", LEVELS)
def test_the_low_rank_product_is_not_rounded_between_its_halves(name: str):
    # 1 + 2⁻⁹ times 512 needs more bits than bf16 has; rounded, the sum below would be 0.
    module = poisoned_module(torch.bfloat16, [])
    module.a.zero_(), module.b.zero_()
    rows = SLOTS[0].row_index(2)
    module.a[rows, 0, 0] = 1.0
    module.a[rows[0], 0, 1] = 2.0**-9
    module.b[rows, 0] = torch.tensor([512.0, -512.0]).bfloat16()
    x, out = torch.zeros(1, 40).bfloat16(), torch.zeros(1, 61).bfloat16()
    x[0, :2] = 1.0
    add_lora(implementation(name), x, module, build_segments([0]), out=out)
    assert out[0, 0] == 1.0


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_slot_bound_anew_is_computed_with_its_new_rows(name: str):
    module, ops = poisoned_module(torch.float32, [0, 1]), implementation(name)
    x, base = inputs(module, 2, torch.float32)
    segments = build_segments([0, 0])
    add_lora(ops, x, module, segments, out=base.clone())
    module.slots.bind(0, SLOTS[1])
    out = base.clone()
    add_lora(ops, x, module, segments, out=out)
    assert torch.allclose(out.double(), reference_lora(x, module, [0, 0], base), rtol=1e-4, atol=1e-4)


def test_what_the_kernels_cannot_read_is_computed_by_pytorch():
    module = poisoned_module(torch.float16, [0])
    x, base = inputs(module, 3, torch.float16)
    found, expected = base.clone(), base.clone()
    add_lora(implementation("plain"), x, module, build_segments([0] * 3), out=found)
    add_lora(TorchLoraOps(), x, module, build_segments([0] * 3), out=expected)
    assert torch.equal(found, expected)
