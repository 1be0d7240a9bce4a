import pytest
import torch

from kernels.lora.ops import add_lora
from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows, SlotTable
from kernels.lora.reference import reference_lora
from kernels.lora.segments import build_segments
from kernels.lora.torch_ops import TorchLoraOps

IN_FEATURES = 40
SIZES = (24, 8, 16)
COLUMNS = (slice(0, 24), slice(24, 32), slice(32, 48))
# Module 0 is another module: its ranks must not be taken.
SLOTS = [
    SlotRows((2,), ((8, 8, 8), (8, 8, 8))),
    SlotRows((4, 5), ((1, 1, 1), (11, 0, 3))),
    SlotRows((7, 1), ((1, 1, 1), (16, 9, 16))),
    SlotRows((0,), ((8, 8, 8), (0, 0, 0))),
    None,
]


def poisoned_module(dtype: torch.dtype) -> LoraModule:
    """Random numbers at the true ranks of the slots, NaN everywhere else."""
    generator = torch.Generator().manual_seed(0)
    a = torch.full((9 * PAGE_ROWS, len(SIZES), IN_FEATURES), float("nan"))
    b = torch.full((9 * PAGE_ROWS, sum(SIZES)), float("nan"))
    for bound in filter(None, SLOTS):
        for i, rank in enumerate(bound.ranks[1]):
            rows = bound.row_index(rank)
            a[rows, i] = torch.randn(rank, IN_FEATURES, generator=generator)
            b[rows, COLUMNS[i]] = torch.randn(rank, SIZES[i], generator=generator)
    return LoraModule(1, a.to(dtype), b.to(dtype), COLUMNS, SlotTable(list(SLOTS)))


TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "slots",
    [
        [0, 0, 0],
        [None, 0, 1, 2, None],
        [1, 2, 1, None, 2, 0, 1],  # scattered: rows are gathered
        [3, None, 3],  # an adapter that does not change this module
        [4],  # a slot that holds nothing
        [2] * 33,
    ],
)
def test_equals_fp64_reads_nothing_past_the_true_rank_and_leaves_base_rows_bit_equal(
    slots: list[int | None], dtype: torch.dtype
):
    module = poisoned_module(dtype)
    x = torch.randn(len(slots), IN_FEATURES, generator=torch.Generator().manual_seed(1)).to(dtype)
    base = torch.randn(len(slots), sum(SIZES), generator=torch.Generator().manual_seed(2)).to(dtype)
    out = base.clone()
    add_lora(TorchLoraOps(), x, module, build_segments(slots), out=out)

    expected = reference_lora(x, module, slots, base)
    assert torch.isfinite(expected).all()
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[dtype]
    without = [row for row, slot in enumerate(slots) if slot in (None, 3, 4)]
    assert torch.equal(out[without], base[without])


def test_a_slot_bound_anew_is_computed_with_its_new_rows():
    module = poisoned_module(torch.float32)
    x, base = torch.randn(2, IN_FEATURES), torch.zeros(2, sum(SIZES))
    segments = build_segments([0, 0])
    add_lora(TorchLoraOps(), x, module, segments, out=base.clone())
    module.slots.rows[0] = SLOTS[1]
    out = base.clone()
    add_lora(TorchLoraOps(), x, module, segments, out=out)
    assert torch.allclose(out.double(), reference_lora(x, module, [0, 0], base), rtol=1e-4, atol=1e-4)
