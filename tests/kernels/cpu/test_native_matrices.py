"""The C++ copies write PyTorch's numbers to the bit, and see what is not finite."""

import pytest
import torch

from kernels.cpu.matrices import MatrixCopy, TorchCopier
from kernels.cpu.native import LEVELS
from kernels.cpu.native_matrices import NativeCopier
from tests.kernels.cpu.implementations import kernels_at

FROM = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def copies(source: torch.Tensor, dtype: torch.dtype) -> list[MatrixCopy]:
    """Straight, turned, and turned with scales, into parts of wider matrices full of NaN."""
    rows, columns = source.shape

    def out(height: int, width: int) -> torch.Tensor:
        return torch.full((height, width + 3), float("nan"), dtype=dtype)[:, :width]

    scales = torch.linspace(0.5, 3, rows)
    return [
        MatrixCopy(source, out(rows, columns)),
        MatrixCopy(source, out(columns, rows), True, 1 / 3),
        MatrixCopy(source, out(columns, rows), True, 1 / 3, scales),
    ]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(70, 16), (33, 3), (5, 9), (300, 70)])
@pytest.mark.parametrize("to_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("from_dtype", FROM)
def test_every_number_is_pytorch_s(
    level: str, from_dtype: torch.dtype, to_dtype: torch.dtype, shape: tuple[int, int]
):
    generator = torch.Generator().manual_seed(0)
    source = (torch.randn(shape, generator=generator).exp() * 3e-7).to(from_dtype)  # denormal halves too
    ours, theirs = copies(source, to_dtype), copies(source, to_dtype)
    assert NativeCopier(kernels_at(level)).copy(ours) is None
    assert TorchCopier().copy(theirs) is None
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.out, other.out)
        assert one.out._base is not None
        assert one.out._base[:, one.out.shape[1] :].isnan().all(), "what is beside the matrix is not touched"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3.4e38])
def test_the_first_copy_with_a_number_that_is_not_finite_is_named(level: str, value: float):
    sound, broken = torch.ones(70, 9), torch.ones(70, 9)
    broken[69, 8] = value  # the largest fp32 numbers are no bf16 numbers
    for copier in (NativeCopier(kernels_at(level)), TorchCopier()):
        for i, copy in enumerate(copies(broken, torch.bfloat16)):
            if value == 3.4e38 and copy.turned and copy.scales is None:
                continue  # a third of it is a bf16 number
            assert copier.copy([*copies(sound, torch.bfloat16), copy]) == 3, i
