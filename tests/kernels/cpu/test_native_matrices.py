"""The C++ copies write PyTorch's numbers to the bit, wherever the bytes lie, and see what is not finite."""

import numpy as np
import pytest
import torch

from kernels.cpu.matrices import Bytes, Copies, MatrixCopier, MatrixCopy, TorchCopier
from kernels.cpu.native import LEVELS
from kernels.cpu.native_matrices import NativeCopier
from tests.kernels.cpu.implementations import kernels_at

FROM = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
GAP = 3  # numbers beside every row, which nobody may touch
SOUND, OTHER = 0, 1  # sources


def copies(matrix: torch.Tensor, source: int, begin: int, out: int) -> list[MatrixCopy]:
    """Straight, turned, and turned with scales, one after another from `out` on."""
    rows, columns = matrix.shape
    shape = (rows, columns)
    found = [MatrixCopy(source, begin, matrix.dtype, shape, out, columns + GAP)]
    for scaling in (1 / 3, 2 / 3):
        found.append(
            MatrixCopy(source, begin, matrix.dtype, shape, found[-1].out_end + GAP, rows + GAP, True, scaling)
        )
    return found


def bytes_of(matrix: torch.Tensor, begin: int) -> Bytes:
    numbers = matrix.contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.concatenate([np.zeros(begin, np.uint8), numbers])


def room_for(wanted: list[MatrixCopy], dtype: torch.dtype) -> torch.Tensor:
    return torch.full((wanted[-1].out_end + GAP,), float("nan"), dtype=dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(70, 16), (33, 3), (5, 9), (300, 70), (1, 1), (256, 8)])
@pytest.mark.parametrize("begin", [0, 1, 6])
@pytest.mark.parametrize("to_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("from_dtype", FROM)
def test_every_number_is_pytorch_s(
    level: str, from_dtype: torch.dtype, to_dtype: torch.dtype, begin: int, shape: tuple[int, int]
):
    generator = torch.Generator().manual_seed(0)
    matrix = (torch.randn(shape, generator=generator).exp() * 3e-7).to(from_dtype)  # denormal halves too
    wanted = copies(matrix, OTHER, begin, out=begin)
    sources = [np.zeros(0, np.uint8), bytes_of(matrix, begin)]
    scales = {2: torch.linspace(0.5, 3, shape[0])}
    ours, theirs = room_for(wanted, to_dtype), room_for(wanted, to_dtype)
    for copier, out in ((NativeCopier(kernels_at(level)), ours), (TorchCopier(), theirs)):
        assert copier.prepare(wanted, to_dtype).run(sources, out, scales) is None
    assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7)), "and what is beside the rows is not touched"
    straight = ours.as_strided(shape, (wanted[0].out_stride, 1), begin)
    assert torch.equal(straight, matrix.to(to_dtype))
    scaled = matrix.float() * (2 / 3) * scales[2][:, None]
    turned = ours.as_strided(shape[::-1], (wanted[2].out_stride, 1), wanted[2].out)
    assert torch.equal(turned, scaled.t().to(to_dtype))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("to_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("from_dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_past_the_caches_is_the_same(
    level: str, from_dtype: torch.dtype, to_dtype: torch.dtype
):
    """Megabytes, in rows that begin at cache lines."""
    width, rank = 64 * 500, 20
    a = torch.randn(rank, width, generator=torch.Generator().manual_seed(1)).to(from_dtype)
    source = bytes_of(a, 0)
    wanted = [
        MatrixCopy(0, 0, from_dtype, (rank, width), 0, width),
        MatrixCopy(0, 0, from_dtype, (width, rank), rank * width, width, turned=True, scaling=0.3),
    ]
    out = torch.empty(2 * rank * width, dtype=to_dtype)
    assert NativeCopier(kernels_at(level)).prepare(wanted, to_dtype).run([source], out) is None
    straight, turned = out.view(2, rank, width)
    assert torch.equal(straight, a.to(to_dtype))
    assert torch.equal(turned, (a.view(width, rank).float() * 0.3).t().to(to_dtype))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3.4e38])
@pytest.mark.parametrize("where", [(69, 8), (0, 0), (33, 4)])
def test_the_first_copy_with_a_number_that_is_not_finite_is_named(
    level: str, value: float, where: tuple[int, int]
):
    sound, broken = torch.ones(70, 9), torch.ones(70, 9)
    broken[where] = value  # the largest fp32 numbers are no bf16 numbers
    sources = [bytes_of(sound, 0), bytes_of(broken, 0)]
    fine = copies(sound, SOUND, 0, 0)
    for copier in (NativeCopier(kernels_at(level)), TorchCopier()):
        for i, copy in enumerate(copies(broken, OTHER, 0, fine[-1].out_end)):
            if value == 3.4e38 and copy.turned:
                continue  # a third of it is a bf16 number
            wanted = [*fine, copy]
            out = room_for(wanted, torch.bfloat16)
            assert copier.prepare(wanted, torch.bfloat16).run(sources, out) == 3, i


@pytest.fixture(params=["torch", "native"])
def copier(request: pytest.FixtureRequest) -> MatrixCopier:
    return TorchCopier() if request.param == "torch" else NativeCopier(kernels_at("plain"))


@pytest.fixture
def prepared(copier: MatrixCopier) -> Copies:
    """Of 4 by 6 numbers, 3 bytes into the second source, to 24 numbers from the fifth on."""
    return copier.prepare([MatrixCopy(1, 3, torch.float32, (4, 6), 5, 6)], torch.bfloat16)


@pytest.mark.parametrize(
    ("sizes", "room", "message"),
    [((0, 98), 29, "sources"), ((99,), 29, "sources"), ((0, 99), 28, "out")],
)
def test_nothing_is_copied_from_or_to_where_there_is_no_memory(
    prepared: Copies, sizes: tuple[int, ...], room: int, message: str
):
    sources = [np.zeros(size, np.uint8) for size in sizes]
    with pytest.raises(ValueError, match=message):
        prepared.run(sources, torch.zeros(room, dtype=torch.bfloat16))


def test_exactly_enough_memory_is_enough_and_another_dtype_is_not(prepared: Copies):
    sources = [np.zeros(0, np.uint8), np.zeros(99, np.uint8)]
    assert prepared.run(sources, torch.zeros(29, dtype=torch.bfloat16)) is None
    with pytest.raises(ValueError, match=r"out: 29 of torch\.float32"):
        prepared.run(sources, torch.zeros(29))
