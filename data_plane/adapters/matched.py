"""The tensors of one adapter, checked and put together by module; values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from data_plane.adapters.weights import StoredTensor
from kernels.cpu.matrices import Bytes

A, B = "lora_A.weight", "lora_B.weight"  # the parts that become rank rows


@dataclass(frozen=True, slots=True)
class Part:
    """One part of one module, unread."""

    stored: StoredTensor
    turned: bool = False  # a tied head's A is the embedding's B, the other way round

    def read(self, sources: Sequence[Bytes]) -> Tensor:
        """A copy of its numbers."""
        tensor = self.stored.read(sources)
        return tensor.t() if self.turned else tensor


Parts = Mapping[str, Part]  # by the end of the key, for example "lora_A.weight"


@dataclass(frozen=True, slots=True)
class Repeat:
    """A tensor that has to have another one's numbers."""

    name: str
    part: Part
    of_name: str
    of_part: Part


@dataclass(frozen=True, slots=True)
class Matching:
    """Every tensor of an adapter in its place: names, kinds and shapes are right, numbers are unread."""

    modules: Mapping[str, Parts]  # by PEFT name
    scalings: Mapping[str, float]  # by PEFT name
    repeats: tuple[Repeat, ...] = ()  # of tied ends


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two matrices of one projection or end, oriented alike, and what PEFT adds to them."""

    name: str
    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]
    scaling: float
    bias: Tensor | None = None  # of B, [out_features]
    magnitude: Tensor | None = None  # of DoRA, [out_features]


@dataclass(frozen=True, slots=True)
class SavedMatrix:
    """The adapter's own matrix for an end."""

    name: str
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class MatchedAdapter:
    """What was read of an adapter, in its place."""

    pairs: dict[str, LoraPair]  # by PEFT name
    saved: dict[str, SavedMatrix]
