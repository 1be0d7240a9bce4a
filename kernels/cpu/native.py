"""The C++ kernels, loaded: one library, one level of it, called with structs of addresses.

Knows nothing of models or pools: the wrappers `native_lora` and `native_attention` check shapes
and dtypes and keep what they point to alive. ctypes lets go of the GIL during a call.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.cpu.calls import DTYPES, AttentionCall, GateCall, GemmCall, LoraCall, NormCall, PackCall
from kernels.cpu.toolchain import BuildFailed, built_library, levels

# As dispatch.cpp counts them.
LEVELS = ("plain", "avx2", "avx512", "avx512_bf16")

PackCalls = ctypes.Array[PackCall]  # made once for all adapters of the same shapes

# Where the time of `layers` goes, as clock.h counts; row phases: norms, rotation, KV writes, gates.
PHASES = ("row phases", "linears", "LoRA", "attention")


@dataclass(frozen=True, slots=True)
class NativeKernels:
    """Every kernel at one level."""

    library: ctypes.CDLL
    level: str

    def lora(self, call: LoraCall) -> None:
        """Add LoRA to `out`."""
        self.library.lora(LEVELS.index(self.level), torch.get_num_threads(), ctypes.byref(call))

    def attention(self, call: AttentionCall) -> None:
        """Write K and V, then attend."""
        self.library.attention(LEVELS.index(self.level), torch.get_num_threads(), ctypes.byref(call))

    def norm(self, call: NormCall) -> None:
        """Normalise rows."""
        self.library.norm(LEVELS.index(self.level), torch.get_num_threads(), ctypes.byref(call))

    def gate(self, call: GateCall) -> None:
        """Multiply rows by their gates."""
        self.library.gate(LEVELS.index(self.level), torch.get_num_threads(), ctypes.byref(call))

    def gemm(self, call: GemmCall) -> None:
        """Multiply by packed weights."""
        self.library.gemm(LEVELS.index(self.level), torch.get_num_threads(), ctypes.byref(call))

    def layers(
        self, calls: "ctypes.Array[ctypes.c_void_p]", spent_s: "ctypes.Array[ctypes.c_double] | None" = None
    ) -> None:
        """Compute decoder layers, one after the other; `calls`: addresses of LayerCalls.

        Seconds are added to `spent_s` by PHASES, when it is given: as the calling thread saw them.
        """
        level, threads = LEVELS.index(self.level), torch.get_num_threads()
        self.library.layers(level, threads, calls, len(calls), spent_s)

    def pack_adapter(
        self, calls: PackCalls, sources: Sequence[int], out: int, scales: Mapping[int, Tensor]
    ) -> int | None:
        """Copy an adapter's matrices on this thread alone; the first whose numbers are not all finite.

        `sources`, `out`: addresses; `scales`: contiguous, by number of the call.
        """
        bases = (ctypes.c_void_p * len(sources))(*sources)
        factors = (ctypes.c_void_p * len(calls))() if scales else None
        for i, scale in scales.items():
            factors[i] = scale.data_ptr()  # type: ignore[index] # there, because there are scales
        level = LEVELS.index(self.level)
        unfit = int(self.library.pack_adapter(level, calls, len(calls), bases, out, factors))
        return None if unfit < 0 else unfit

    def packed(self, weight: Tensor) -> Tensor:
        """`weight` [out_features, in_features] in the form that `gemm` reads, flat."""
        dtype, (out_features, in_features) = DTYPES[weight.dtype], weight.shape
        size = self.library.packed_size(dtype, out_features, in_features)
        packed = torch.empty(size, dtype=weight.dtype)
        self.library.pack(
            dtype,
            torch.get_num_threads(),
            weight.data_ptr(),
            weight.stride(0),
            out_features,
            in_features,
            packed.data_ptr(),
        )
        return packed


def load_kernels(
    cache: Path, *, level: str | None = None, report: Callable[[str], None] = lambda line: None
) -> NativeKernels:
    """Build if need be, load, and choose the machine's best level or the one named; raise BuildFailed."""
    path = built_library(cache, report=report)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildFailed(f"{path}: {error}") from error
    library.best_level.restype = ctypes.c_int64
    library.packed_size.argtypes, library.packed_size.restype = (ctypes.c_int64,) * 3, ctypes.c_int64
    library.pack_adapter.argtypes = (
        *(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64),
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
    )
    library.pack_adapter.restype = ctypes.c_int64
    library.layers.argtypes = (
        *(ctypes.c_int64, ctypes.c_int64),
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
    )
    library.layers.restype = library.pack.restype = None
    library.pack.argtypes = (
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    )
    for name in ("lora", "attention", "norm", "gate", "gemm"):
        function = getattr(library, name)
        function.argtypes, function.restype = (ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p), None
    best = int(library.best_level())
    if level is None:
        return NativeKernels(library, LEVELS[best])
    if level not in levels() or LEVELS.index(level) > best:
        raise BuildFailed(f"level: {level} is above this machine's, {LEVELS[best]}")
    return NativeKernels(library, level)
