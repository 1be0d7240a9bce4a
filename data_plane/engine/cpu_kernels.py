"""Chooses how the CPU computes LoRA and attention, and says so in one log line with the reason.

The C++ kernels when they can be built and loaded, plain PyTorch otherwise; both give the same
numbers. Knows nothing of models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from data_plane.config import CpuKernels
from kernels.cpu.attention import PagedAttention, TorchAttention
from kernels.cpu.native import NativeKernels, load_kernels
from kernels.cpu.native_attention import NativeAttention
from kernels.cpu.native_lora import NativeLoraOps
from kernels.cpu.toolchain import BuildFailed, default_cache
from kernels.lora.ops import LoraOps
from kernels.lora.torch_ops import TorchLoraOps

_log = structlog.get_logger("data_plane.engine")


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of everything that has two."""

    lora: LoraOps
    attention: PagedAttention
    native: NativeKernels | None  # None: plain PyTorch


def load_or_build() -> NativeKernels:
    """The C++ kernels of this user's cache, at the machine's best level; raise BuildFailed."""
    return load_kernels(default_cache(), report=lambda line: _log.info("cpu_kernels.build", line=line))


def choose_kernels(choice: CpuKernels, load: Callable[[], NativeKernels] = load_or_build) -> Kernels:
    """`torch` is plain PyTorch; `auto` is C++ where it can be built, and its absence is no error."""
    torch_lora, torch_attention = TorchLoraOps(), TorchAttention()
    plain = Kernels(torch_lora, torch_attention, None)
    if choice == "torch":
        _log.info("cpu_kernels", path="torch", reason="cpu_kernels is torch")
        return plain
    try:
        native = load()
    except BuildFailed as error:
        _log.warning("cpu_kernels", path="torch", reason=str(error))
        return plain
    _log.info("cpu_kernels", path="c++", level=native.level, reason="the best level of this machine")
    return Kernels(NativeLoraOps(native, torch_lora), NativeAttention(native, torch_attention), native)
