import pytest
import torch
import torch.nn.functional as F

from kernels.cpu.linear import PlainLinear, make_linear, packing_works


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 16, 130])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_linear_equals_the_product(dtype: torch.dtype, num_tokens: int, has_bias: bool):
    weight, bias = torch.randn(96, 64).to(dtype), torch.randn(96).to(dtype) if has_bias else None
    x = torch.randn(1, num_tokens, 64).to(dtype)
    expected = F.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
    found = make_linear(weight, bias)(x)
    assert found.is_contiguous()
    assert (found.double() - expected).abs().max() / expected.abs().max() < (
        1e-5 if dtype == torch.float32 else 1e-2
    )


def test_a_dtype_that_cannot_be_packed_is_computed_plainly():
    assert not packing_works(torch.float64)
    linear = make_linear(torch.ones(2, 3, dtype=torch.float64), None)
    assert isinstance(linear, PlainLinear)
    assert linear(torch.ones(1, 3, dtype=torch.float64)).tolist() == [[3.0, 3.0]]
