"""Linear layers by the C++ kernels, with weights packed once.

    y = x Wᵀ + b

Each sum runs over the inputs from front to back, in fp32, so a row of y depends on its row of x
alone. SmolLM2's 120 linears, bf16, 2 cores, C++ / oneDNN's packed form: 4.4 / 8.9 ms for 1 token,
8.9 / 10.3 for 16, 20.8 / 24.6 for 64, 592 / 609 for 2,048.
"""

import torch
from torch import Tensor

from kernels.cpu.calls import DTYPES, GemmCall, computable
from kernels.cpu.native import NativeKernels

_BIAS_ALIGNMENT = 32  # a panel's columns


class NativeLinear:
    """Implements `kernels.cpu.linear.Linear`; the original weight may be freed."""

    def __init__(self, kernels: NativeKernels, weight: Tensor, bias: Tensor | None) -> None:
        if not computable(weight):
            raise ValueError(f"weight: {weight.dtype} {list(weight.shape)} cannot be packed here")
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self._kernels = kernels
        self._weight = kernels.packed(weight)
        self._bias = None if bias is None else _padded(bias)

    @property
    def num_bytes(self) -> int:
        """Memory of its weights."""
        return self._weight.nbytes + (self._bias.nbytes if self._bias is not None else 0)

    def call(self) -> GemmCall:
        """A call with all that never changes; `x`, `out`, their strides and `num_tokens` are to be set."""
        return GemmCall(
            dtype=DTYPES[self.dtype],
            weights=self._weight.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            in_features=self.in_features,
            out_features=self.out_features,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b for `x` [..., in_features] of the weight's dtype."""
        if not computable(x) or x.dtype != self.dtype or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x: {x.dtype} {list(x.shape)} does not fit {self.dtype} […, {self.in_features}]"
            )
        rows = x.reshape(-1, self.in_features)
        out = torch.empty(rows.shape[0], self.out_features, dtype=x.dtype)
        call = self.call()
        call.x, call.x_stride = rows.data_ptr(), rows.stride(0)
        call.out, call.out_stride = out.data_ptr(), self.out_features
        call.num_tokens = rows.shape[0]
        self._kernels.gemm(call)
        return out.view(*x.shape[:-1], self.out_features)


def _padded(bias: Tensor) -> Tensor:
    """In fp32, with zeros up to the last panel's end."""
    size = -(-bias.shape[0] // _BIAS_ALIGNMENT) * _BIAS_ALIGNMENT
    padded = torch.zeros(size)
    padded[: bias.shape[0]] = bias
    return padded
