"""Our linear layers: siblings computed by one product, with the LoRA of the step added.

    y = x [W_q; W_k; W_v]ᵀ + b,   then   y[t, columns_i] += LoRA_i(x[t])

where an adapter of DoRA, or with biases of its own, scales and shifts its rows of y in between.

The first sibling that is called computes for all; each returns its own columns. Knows the step
only through StepState. Invariant: a sibling never returns columns of another input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_plane.models.step import StepState
from kernels.cpu.linear import Linear
from kernels.lora.changes import change_columns
from kernels.lora.ops import LoraOps, add_lora
from kernels.lora.pool import LoraModule


@dataclass(frozen=True, slots=True)
class ProjectionLora:
    """A fused projection's share of the rank pool and how to compute with it."""

    module: LoraModule
    ops: LoraOps
    state: StepState

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the step's adapters to `y` in place."""
        segments = self.state.segments
        if segments is not None:
            out = y.flatten(0, -2)
            if self.module.slots.sided:
                change_columns(self.module, segments, out=out)
            add_lora(self.ops, x.flatten(0, -2), self.module, segments, out=out)


class FusedProjection:
    """The product that siblings share."""

    def __init__(self, linear: Linear, sizes: Sequence[int], lora: ProjectionLora | None) -> None:
        self.linear, self.lora, self._sizes = linear, lora, list(sizes)
        self._input: Tensor | None = None
        self._outputs: list[Tensor] = []

    def output(self, index: int, x: Tensor) -> Tensor:
        """Columns of projection `index`, computing all of them when `x` is new."""
        if x is not self._input:
            y = self.linear(x)
            if self.lora is not None:
                self.lora.add(x, y)
            if len(self._sizes) == 1:
                return y
            self._input, self._outputs = x, list(torch.split(y, self._sizes, dim=-1))
        out = self._outputs[index]
        if index == len(self._sizes) - 1:
            # The last sibling lets go: a later tensor at the same place is another input.
            self._input, self._outputs = None, []
        return out


class ProjectionSlice(nn.Module):
    """Stands where a linear module of the definition stood."""

    def __init__(self, fused: FusedProjection, index: int) -> None:
        super().__init__()
        self.fused, self._index = fused, index

    def forward(self, x: Tensor) -> Tensor:
        """This projection of `x` [..., in_features]."""
        return self.fused.output(self._index, x)
