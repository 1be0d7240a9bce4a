"""The base model's weights as reading an adapter must know them; implements `BaseWeights`.

The projections' own tensors are gone once they are packed: what stays of them is the packed
product and a norm a row. Read by loader threads; nothing here changes. Takes and returns tensors in
host memory, wherever the weights are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_plane.adapters.layout import AdapterLayout
from kernels.cpu.linear import Linear


@dataclass(frozen=True, slots=True)
class FusedWeights:
    """What is kept of one fused projection."""

    linear: Linear
    bias: Tensor | None  # [out_features]
    norms_squared: Tensor  # [out_features] fp32


@dataclass(frozen=True, slots=True)
class EndWeights:
    """An end's weight, as the base model keeps it."""

    weight: Tensor
    bias: Tensor | None
    is_embedding: bool  # its weight is the transpose of a projection's


def row_norms_squared(weights: Sequence[Tensor]) -> Tensor:
    """‖W_o‖² of every row of the weights, one below the other, [out_features] fp32."""
    norms = [torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32) for weight in weights]
    return torch.cat(norms).square()


class ModelWeights:
    """Weights of every module of the layout."""

    def __init__(
        self,
        layout: AdapterLayout,
        fused: Sequence[FusedWeights],
        ends: dict[str, EndWeights],
        dtype: torch.dtype,
    ) -> None:
        self._layout, self._fused, self._ends, self._dtype = layout, fused, ends, dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of the base model."""
        return self._dtype

    def bias(self, name: str) -> Tensor | None:
        """See BaseWeights."""
        if name in self._ends:
            bias = self._ends[name].bias
            return None if bias is None else bias.cpu()
        fused, columns = self._place(name)
        return None if fused.bias is None else fused.bias[columns].cpu()

    def norms_squared(self, name: str) -> Tensor:
        """See BaseWeights."""
        if name in self._ends:
            end = self._ends[name]
            return row_norms_squared([end.weight.t() if end.is_embedding else end.weight]).cpu()
        fused, columns = self._place(name)
        return fused.norms_squared[columns].cpu()

    def product(self, name: str, a: Tensor) -> Tensor:
        """See BaseWeights. In the base's dtype, as its own products are."""
        if name in self._ends:
            end = self._ends[name]
            a = a.to(end.weight.device, self._dtype)
            return (a @ (end.weight if end.is_embedding else end.weight.t())).float().cpu()
        fused, columns = self._place(name)
        product = fused.linear(a.to(fused.norms_squared.device, self._dtype)).float()
        return (product if fused.bias is None else product - fused.bias.float())[:, columns].cpu()

    def has(self, name: str, part: str, tensor: Tensor) -> bool:
        """See BaseWeights."""
        end = self._ends[name]
        own = end.weight if part == "weight" else end.bias
        return own is not None and torch.equal(own, tensor.to(own.device, own.dtype))

    def _place(self, name: str) -> tuple[FusedWeights, slice]:
        target = self._layout.targets[name]
        return self._fused[target.module], self._layout.modules[target.module].columns[target.slice]
