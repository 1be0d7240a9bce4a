"""What a transformer does between its products, by the C++ kernels: one pass over memory each.

    norm   round(x / sqrt(mean(x²) + eps)) · (weight + offset)
    gate   round(silu(gate)) · up

There is no plain twin: where these cannot run, the model definition's own code does. In bf16 the
definition's five and two passes took a third of a decode step of 64 tokens (SmolLM2, 2 cores).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.calls import DTYPES, GateCall, NormCall, computable
from kernels.cpu.native import NativeKernels


@dataclass(frozen=True, slots=True)
class NormOptions:
    """How rows are normalised."""

    eps: float
    offset: float = 0.0  # added to the weight, in fp32 when it is not 0


def norm(kernels: NativeKernels, x: Tensor, weight: Tensor, options: NormOptions) -> Tensor:
    """RMS norm of the last dimension of `x` [..., size] by `weight` [size], both of one dtype."""
    if not computable(x, weight) or x.dtype != weight.dtype or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x: {x.dtype} {list(x.shape)} cannot be normalised by {weight.dtype} weights here")
    x = x.contiguous()
    out = torch.empty_like(x)
    size = weight.shape[0]
    rows = x.numel() // size
    call = NormCall(
        DTYPES[x.dtype],
        x.data_ptr(),
        weight.data_ptr(),
        out.data_ptr(),
        rows,
        size,
        options.eps,
        options.offset,
    )
    kernels.norm(call)
    return out


def gate(kernels: NativeKernels, gates: Tensor, up: Tensor) -> Tensor:
    """silu(gates) · up, both [num_rows, size] with any distance of rows, of one dtype."""
    if not computable(gates, up) or gates.dtype != up.dtype or gates.shape != up.shape or gates.ndim != 2:
        raise ValueError(f"gates: {gates.dtype} {list(gates.shape)} does not fit {up.dtype} {list(up.shape)}")
    out = torch.empty(gates.shape, dtype=gates.dtype)
    call = GateCall(
        DTYPES[gates.dtype],
        gates.data_ptr(),
        up.data_ptr(),
        gates.stride(0),
        up.stride(0),
        out.data_ptr(),
        *gates.shape,
    )
    kernels.gate(call)
    return out
