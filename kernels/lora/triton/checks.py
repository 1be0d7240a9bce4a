"""What the host wrappers ask of their tensors before a launch.

A kernel that is handed another layout reads other memory without an error, so layouts are
checked here and nowhere in the kernels.
"""

import torch
from torch import Tensor

from kernels.lora.triton.errors import LaunchRefused

DTYPES = (torch.bfloat16, torch.float16)


def check_matrix(name: str, tensor: Tensor, *, floats: bool = False) -> None:
    """Refuse what is no matrix of contiguous rows in fp16 or bf16 (`floats`: in fp32)."""
    allowed = (torch.float32,) if floats else DTYPES
    if tensor.dtype not in allowed:
        raise LaunchRefused(f"{name}.dtype", tensor.dtype, f"is none of {allowed}")
    if tensor.dim() != 2 or (tensor.shape[1] > 1 and tensor.stride(1) != 1):
        raise LaunchRefused(name, (tuple(tensor.shape), tensor.stride()), "is no matrix of contiguous rows")


def check_pool(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse what is no contiguous tensor of the rank pool, of the same dtype as the input."""
    if tensor.dtype != dtype:
        raise LaunchRefused(f"{name}.dtype", tensor.dtype, f"is not the input's {dtype}")
    if not tensor.is_contiguous():
        raise LaunchRefused(name, tensor.stride(), "is not contiguous")
