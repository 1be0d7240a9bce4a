"""The numerics' own instrument: every bf16 value and the roundings between them."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.triton.interpreter import to_bits, to_floats

EVERY_BF16 = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


@triton.jit
def _cast(source, target, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(target + at, tl.load(source + at).to(target.dtype.element_ty))


@triton.jit
def _product(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    square = at[:, None] * SIZE + at[None, :]
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    tl.store(out + square, tl.dot(tl.load(a + square), tl.load(b + square), acc))


def test_every_bf16_value_becomes_the_same_float_as_in_torch():
    ours = to_floats(EVERY_BF16.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(ours, EVERY_BF16.float().numpy(), equal_nan=True)


def test_rounding_is_to_nearest_even_for_every_value_its_midpoint_and_their_neighbours():
    finite = EVERY_BF16.float()[EVERY_BF16.isfinite()]
    raw = finite.view(torch.int32)
    floats = torch.cat([(raw + offset).view(torch.float32) for offset in (0, 0x7FFF, 0x8000, 0x8001)])
    expected = floats.bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bits(floats.numpy()), expected)


def test_a_kernel_casts_as_torch_does():
    floats = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    out = torch.empty(1024, dtype=torch.bfloat16)
    _cast[(1,)](floats, out, SIZE=1024)
    assert torch.equal(out, floats.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_kernels_product_is_of_the_values_not_of_their_bits(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(32, 32, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(32, 32)
    _product[(1,)](a, b, out, SIZE=32)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
