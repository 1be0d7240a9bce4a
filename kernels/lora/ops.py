"""The interface of the LoRA product, whichever way it is computed.

    shrink   h[t, i] = x[t] @ A_i[slot(t)]ᵀ          for every slice i of the module
    expand   y[t, columns_i] += h[t, i] @ B_i[slot(t)]

Implementations: `torch_ops` (any device, no compiler); Triton and C++ kernels take the same
arguments. All of them compute true ranks only, accumulate in fp32 and leave the rows of tokens
without an adapter bit-equal.
"""

from typing import Protocol

from torch import Tensor

from kernels.lora.pool import LoraModule
from kernels.lora.segments import Segments


class LoraOps(Protocol):
    """Shrink and expand over the rank pool; the caller owns every buffer."""

    def hidden(self, segments: Segments, module: LoraModule, x: Tensor) -> Tensor:
        """An uninitialised buffer for `shrink`: its shape and dtype are the implementation's."""

    def shrink(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """Write `out` from `x` [num_tokens, in_features]; what no tile covers stays as it is."""

    def expand(self, hidden: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """Add to `out` [num_tokens, out_features] what `shrink` left in `hidden`."""

    def add(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """Both, one after the other; an implementation may do them in one."""
        hidden = self.hidden(segments, module, x)
        self.shrink(x, module, segments, out=hidden)
        self.expand(hidden, module, segments, out=out)


def max_rank(module: LoraModule, segments: Segments) -> int:
    """Largest true rank of the module over the step's slots; 0: nothing to compute."""
    return max((max(module.ranks(tile.slot)) for tile in segments.tiles), default=0)


def add_lora(ops: LoraOps, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
    """out += LoRA(x), for `x` [num_tokens, in_features] and `out` [num_tokens, out_features]."""
    ops.add(x, module, segments, out=out)
