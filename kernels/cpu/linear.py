"""Linear layers on the CPU with weights packed once for oneDNN.

    y = x Wᵀ + b

The packing operators are private to torch, so they are probed once a dtype and shape; where they
are missing or wrong, `F.linear` computes the same. Packed weights ran 1.0–2.0x the plain ones in
fp32 and up to 1.4x in bf16 (SmolLM2's shapes, 2 cores).
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.calls import computable
from kernels.cpu.native import NativeKernels
from kernels.cpu.native_linear import NativeLinear


class Linear(Protocol):
    """y = x Wᵀ + b for `x` [..., in_features]."""

    @property
    def num_bytes(self) -> int:
        """Memory of its weights."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return [..., out_features], newly allocated, contiguous."""


class PlainLinear:
    """The weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    @property
    def num_bytes(self) -> int:
        """Memory of its weights."""
        return self._weight.nbytes + (self._bias.nbytes if self._bias is not None else 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b."""
        return F.linear(x, self._weight, self._bias)


class PackedLinear:
    """The weight in oneDNN's own layout; the original may be freed."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._num_bytes = weight.nbytes + (bias.nbytes if bias is not None else 0)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias
        self._apply = torch.ops.mkldnn._linear_pointwise.default

    @property
    def num_bytes(self) -> int:
        """Memory of its weights, but for the padding of the layout."""
        return self._num_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b."""
        y: Tensor = self._apply(x, self._weight, self._bias, "none", [], "")
        return y


def make_linear(weight: Tensor, bias: Tensor | None, kernels: NativeKernels | None = None) -> Linear:
    """Pack the weight [out_features, in_features] for what computes it fastest here, else keep it."""
    # With shorter vectors than AVX-512's, oneDNN's products are the faster ones.
    if kernels is not None and kernels.level.startswith("avx512") and computable(weight):
        return NativeLinear(kernels, weight, bias)
    if weight.device.type == "cpu" and packing_works(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def packing_works(dtype: torch.dtype) -> bool:
    """Whether the private operators exist, accept `dtype` and give the right product."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 32, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    x = torch.randn(3, 32, generator=generator).to(dtype)
    try:
        y = PackedLinear(weight, bias)(x)
    except (AttributeError, RuntimeError):  # no such operator, or not for this dtype or machine
        return False
    return torch.allclose(y.float(), F.linear(x.float(), weight.float(), bias.float()), rtol=2e-2, atol=2e-2)
