import pytest
import torch
import torch.nn.functional as F

from kernels.cpu.native import LEVELS
from kernels.cpu.native_pointwise import NormOptions, gate, norm
from tests.kernels.cpu.implementations import kernels_at

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # the second: one unit in the last place


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 37, 576])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_equals_fp64(level: str, dtype: torch.dtype, size: int, offset: float):
    x, weight = torch.randn(2, 20, size).to(dtype), torch.randn(size).to(dtype)
    found = norm(kernels_at(level), x, weight, NormOptions(1e-5, offset))
    wide = x.double()
    expected = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * (weight.double() + offset)
    assert found.dtype == dtype
    assert error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("level", LEVELS)
def test_norm_of_small_numbers_sees_eps(level: str):
    x = torch.full((1, 8), 1e-3)
    found = norm(kernels_at(level), x, torch.ones(8), NormOptions(1e-6))
    assert torch.allclose(found, torch.full((1, 8), 0.5**0.5), rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 37, 1536])
def test_gate_of_columns_of_one_tensor_equals_fp64(level: str, dtype: torch.dtype, size: int):
    both = (8 * torch.randn(20, 2 * size)).to(dtype)
    gates, up = both.split(size, dim=-1)
    found = gate(kernels_at(level), gates, up)
    assert found.is_contiguous()
    assert error(found, F.silu(gates.double()) * up.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("level", LEVELS)
def test_gates_far_from_zero_are_shut_or_open(level: str):
    gates = torch.tensor([[-1e4, -100.0, 100.0, 1e4]])
    found = gate(kernels_at(level), gates, torch.ones(1, 4))
    assert torch.allclose(found, torch.tensor([[0.0, 0.0, 100.0, 1e4]]), atol=1e-6)


def test_shapes_that_do_not_fit_are_refused_with_both():
    with pytest.raises(ValueError, match=r"\[2, 3\] does not fit torch.float32 \[2, 4\]"):
        gate(kernels_at("plain"), torch.ones(2, 3), torch.ones(2, 4))
