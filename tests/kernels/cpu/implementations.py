"""Every implementation that a test runs over: plain PyTorch, and each level of the C++ kernels."""

import pytest

from kernels.cpu.native import LEVELS, NativeKernels, load_kernels
from kernels.cpu.toolchain import BuildFailed, default_cache

IMPLEMENTATIONS = ["torch", *LEVELS]


def kernels_at(level: str) -> NativeKernels:
    """The kernels forced to a level; skips the test where the machine or its compiler lacks it."""
    try:
        return load_kernels(default_cache(), level=level)
    except BuildFailed as error:
        pytest.skip(str(error))
