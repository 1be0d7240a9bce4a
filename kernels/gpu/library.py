"""The KV write as a torch custom operator, so that torch.compile and CUDA graphs see it.

The fake implementation has nothing to compute but refuses what the real one would refuse.
"""

import torch
from torch import Tensor

from kernels.gpu import kv_write


@torch.library.custom_op("loraplane::kv_write", mutates_args=("k_cache", "v_cache"))
def write_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor) -> None:
    """See `kv_write.kv_write`."""
    kv_write.kv_write(key, value, k_cache, v_cache, rows)


@write_kv.register_fake
def _(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor) -> None:
    for new, cache in ((key, k_cache), (value, v_cache)):
        kv_write.check(new, cache)
