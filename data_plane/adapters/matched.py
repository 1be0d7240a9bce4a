"""The tensors of one adapter, checked and put together by module; values only."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two matrices of one projection or end, oriented alike, and what PEFT adds to them."""

    name: str
    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]
    scaling: float
    bias: Tensor | None = None  # of B, [out_features]
    magnitude: Tensor | None = None  # of DoRA, [out_features]

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class SavedMatrix:
    """The adapter's own matrix for an end."""

    name: str
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class MatchedAdapter:
    """Every tensor of an adapter in its place."""

    pairs: dict[str, LoraPair]  # by PEFT name
    saved: dict[str, SavedMatrix]
