import pytest
import torch
from torch import Tensor

from kernels.cpu.native import LEVELS
from kernels.cpu.native_linear import NativeLinear
from tests.kernels.cpu.implementations import kernels_at

ERRORS = {torch.float32: 3e-6, torch.bfloat16: 4e-3}  # of the largest number; bf16 has 8 bits
# No multiple of a panel or a vector among them, an odd number of inputs, a single one.
SHAPES = [(96, 64), (33, 7), (5, 96), (64, 31), (40, 1)]
NUM_ROWS = [1, 2, 3, 12, 13, 25, 200]  # the last: more than one block of rows


def of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_fp64(shape: tuple[int, int], dtype: torch.dtype, level: str):
    weight, bias = of(shape, dtype), of(shape[:1], dtype)
    linear = NativeLinear(kernels_at(level), weight, bias)
    for num_rows in NUM_ROWS:
        x = of((num_rows, shape[1]), dtype)
        expected = x.double() @ weight.double().t() + bias.double()
        error = (linear(x).double() - expected).abs().max() / expected.abs().max()
        assert error < ERRORS[dtype]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ERRORS)
def test_a_row_is_the_same_in_every_batch_and_with_any_threads(dtype: torch.dtype, level: str):
    linear = NativeLinear(kernels_at(level), of((96, 65), dtype), None)
    x = of((210, 65), dtype)
    together = linear(x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        apart = torch.cat([linear(row[None]) for row in x])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, apart)


def test_rows_and_weights_may_lie_apart_and_what_is_between_is_not_read():
    wide = torch.full((40, 32), float("nan"))
    weight, x = wide.clone(), wide.clone()
    weight[:, :20], x[:, :20] = torch.randn(40, 20), torch.randn(40, 20)
    found = NativeLinear(kernels_at("plain"), weight[:, :20], None)(x[:, :20])
    torch.testing.assert_close(found, x[:, :20] @ weight[:, :20].t(), rtol=1e-4, atol=1e-5)


def test_leading_dimensions_stay():
    linear = NativeLinear(kernels_at("plain"), torch.randn(6, 4), None)
    assert linear(torch.randn(2, 3, 4)).shape == (2, 3, 6)


@pytest.mark.parametrize("x", [torch.randn(2, 5), torch.randn(2, 4).bfloat16()])
def test_input_that_does_not_fit_is_refused(x: Tensor):
    with pytest.raises(ValueError, match="does not fit"):
        NativeLinear(kernels_at("plain"), torch.randn(6, 4), None)(x)
