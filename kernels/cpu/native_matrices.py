"""Copies of an adapter's matrices by the C++ kernels, in one call that lets go of the GIL.

The copying thread computes alone: no OpenMP team is woken, or made, beside the steps. What the kernels do
not compute (fp64, matrices with gaps in their rows, a pool in fp16) is copied by PyTorch.
"""

from collections.abc import Sequence

import torch

from kernels.cpu.calls import DTYPES, PackCall
from kernels.cpu.matrices import MatrixCopier, MatrixCopy, TorchCopier
from kernels.cpu.native import NativeKernels

_FROM = {**DTYPES, torch.float16: 2}  # as calls.h counts them


class NativeCopier:
    """Implements `MatrixCopier`."""

    def __init__(self, kernels: NativeKernels) -> None:
        self._kernels = kernels
        self._others: MatrixCopier = TorchCopier()

    def copy(self, copies: Sequence[MatrixCopy]) -> int | None:
        """See `MatrixCopier.copy`; raise ValueError when a shape does not fit."""
        if not all(map(_computable, copies)):
            return self._others.copy(copies)
        return self._kernels.pack_adapter([_call(copy) for copy in copies])


def _computable(copy: MatrixCopy) -> bool:
    source, out, scales = copy.source, copy.out, copy.scales
    if source.dtype not in _FROM or out.dtype not in DTYPES or not source.is_cpu or not out.is_cpu:
        return False
    if scales is not None and (scales.dtype is not torch.float32 or not scales.is_contiguous()):
        return False
    return source.stride(1) == 1 and out.stride(1) == 1


def _call(copy: MatrixCopy) -> PackCall:
    source, out, scales = copy.source, copy.out, copy.scales
    rows, columns = source.shape
    if out.shape != ((columns, rows) if copy.turned else (rows, columns)):
        raise ValueError(f"out: {list(out.shape)} does not fit {rows} rows and {columns} columns")
    if scales is not None and scales.shape != (rows,):
        raise ValueError(f"scales: {list(scales.shape)} does not fit {rows} rows")
    return PackCall(
        _FROM[source.dtype],
        DTYPES[out.dtype],
        source.data_ptr(),
        source.stride(0),
        rows,
        columns,
        out.data_ptr(),
        out.stride(0),
        copy.turned,
        copy.scaling,
        None if scales is None else scales.data_ptr(),
    )
