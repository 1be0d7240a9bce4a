"""Copies of an adapter's matrices by the C++ kernels, in one call that lets go of the GIL.

The copying thread computes alone: no OpenMP team is woken, or made, beside the steps. What the kernels do
not compute (fp64, a pool in fp16) is copied by PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.calls import DTYPES, PackCall
from kernels.cpu.matrices import NO_SCALES, Bytes, Copies, Extent, MatrixCopy, Scales, TorchCopier, extent_of
from kernels.cpu.native import NativeKernels, PackCalls

_FROM = {**DTYPES, torch.float16: 2}  # as calls.h counts them


class NativeCopier:
    """Implements `MatrixCopier`."""

    def __init__(self, kernels: NativeKernels) -> None:
        self._kernels = kernels

    def prepare(self, copies: Sequence[MatrixCopy], dtype: torch.dtype) -> Copies:
        """See `MatrixCopier.prepare`."""
        if dtype not in DTYPES or not all(copy.dtype in _FROM for copy in copies):
            return TorchCopier().prepare(copies, dtype)
        calls = (PackCall * len(copies))(*(_call(copy, dtype) for copy in copies))
        rows = tuple(copy.shape[0] for copy in copies)
        return _NativeCopies(self._kernels, calls, rows, extent_of(copies, dtype))


@dataclass(frozen=True, slots=True)
class _NativeCopies:
    kernels: NativeKernels
    calls: PackCalls
    rows: tuple[int, ...]
    extent: Extent

    def run(self, sources: Sequence[Bytes], out: Tensor, scales: Scales = NO_SCALES) -> int | None:
        """See `Copies.run`."""
        self.extent.check(sources, out)
        if not out.is_cpu or not all(source.flags.c_contiguous for source in sources):
            raise ValueError("sources, out: are not contiguous memory of the host")
        for i, scale in scales.items():
            if scale.dtype is not torch.float32 or scale.shape != (self.rows[i],):
                raise ValueError(
                    f"scales: {list(scale.shape)} of {scale.dtype}, {self.rows[i]} fp32 are read"
                )
        return self.kernels.pack_adapter(
            self.calls,
            [source.ctypes.data for source in sources],
            out.data_ptr(),
            {i: scale.contiguous() for i, scale in scales.items()},
        )


def _call(copy: MatrixCopy, dtype: torch.dtype) -> PackCall:
    rows, columns = copy.shape
    return PackCall(
        *(_FROM[copy.dtype], DTYPES[dtype]),
        *(copy.source, copy.begin, rows, columns),
        *(copy.out, copy.out_stride, copy.turned, copy.scaling),
    )
