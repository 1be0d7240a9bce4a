"""What reading an adapter must know of the base model's weights, as a Protocol.

DoRA divides by the norm of the changed weight, and PEFT puts copies of base matrices into the
files of adapters that change an end; `data_plane.models` has the weights.
"""

from typing import Protocol

import torch
from torch import Tensor


class BaseWeights(Protocol):
    """The matrices W [out_features, in_features] by PEFT name; an embedding counts as its transpose."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the base model."""

    def bias(self, name: str) -> Tensor | None:
        """[out_features], or None."""

    def norms_squared(self, name: str) -> Tensor:
        """‖W_o‖² of every output, [out_features] fp32."""

    def product(self, name: str, a: Tensor) -> Tensor:
        """Return a Wᵀ without bias, [rank, out_features] fp32, for `a` [rank, in_features]."""

    def has(self, name: str, part: str, tensor: Tensor) -> bool:
        """Whether an end's "weight" or "bias" equals `tensor` in the base's dtype."""
