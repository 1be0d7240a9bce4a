"""What the wrappers of this package ask beside `triton.checks`; the kernels check nothing."""

import torch
from torch import Tensor

from kernels.lora.triton.ends.slot_ends import FIELDS
from kernels.lora.triton.errors import LaunchRefused


def check_ends(ends: Tensor) -> None:
    """Refuse what is no table of `slot_ends`."""
    if ends.dtype != torch.int64 or ends.dim() != 2 or ends.shape[1] != FIELDS or not ends.is_contiguous():
        raise LaunchRefused("ends", (ends.dtype, tuple(ends.shape)), f"is no int64 [num_slots, {FIELDS}]")


def check_ids(ids: Tensor) -> None:
    """Refuse what are no token ids, one behind the other."""
    if ids.dtype != torch.int64 or ids.dim() != 1 or not ids.is_contiguous():
        raise LaunchRefused("ids", (ids.dtype, tuple(ids.shape)), "are no contiguous int64 [num_tokens]")


def check_multiplier(multiplier: Tensor) -> None:
    """Refuse what is not one fp32 number."""
    if multiplier.dtype != torch.float32 or multiplier.numel() != 1:
        raise LaunchRefused("multiplier", (multiplier.dtype, tuple(multiplier.shape)), "is no fp32 number")
