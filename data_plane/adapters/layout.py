"""Which modules of the base model can carry LoRA, and where each one's weights are in the rank pool.

A *module* here is a fused projection: siblings that are computed together (q, k, v). Its slices
are the projections by the names PEFT gives them. Says nothing of any one adapter.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from kernels.lora.pool import PAGE_ROWS


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear layer of the base model, as PEFT sees it."""

    name: str  # for example "model.layers.3.self_attn.q_proj"
    out_features: int


@dataclass(frozen=True, slots=True)
class FusedModule:
    """Projections of one input, computed together."""

    projections: tuple[Projection, ...]
    in_features: int

    @property
    def out_features(self) -> int:
        """Over all projections."""
        return sum(projection.out_features for projection in self.projections)

    @property
    def columns(self) -> tuple[slice, ...]:
        """Each projection's columns of the fused output."""
        ends = list(accumulate(projection.out_features for projection in self.projections))
        return tuple(slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True))


@dataclass(frozen=True, slots=True)
class Target:
    """Where one projection is in the layout."""

    module: int
    slice: int
    in_features: int
    out_features: int


@dataclass(frozen=True)
class AdapterLayout:
    """Every module that can carry LoRA, in the order of computation."""

    modules: tuple[FusedModule, ...]

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Every projection by its PEFT name."""
        return {
            projection.name: Target(m, s, module.in_features, projection.out_features)
            for m, module in enumerate(self.modules)
            for s, projection in enumerate(module.projections)
        }

    @cached_property
    def row_elements(self) -> int:
        """Numbers in one rank row over all modules."""
        return sum(len(m.projections) * m.in_features + m.out_features for m in self.modules)

    def page_bytes(self, element_bytes: int) -> int:
        """Bytes of one page of the rank pool over all modules."""
        return PAGE_ROWS * self.row_elements * element_bytes


def pages_for(rank: int) -> int:
    """Pages that a rank needs."""
    return -(-rank // PAGE_ROWS)
