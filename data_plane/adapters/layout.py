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


@dataclass(frozen=True, slots=True)
class End:
    """The embedding or the output head of the base model: LoRA on it, or a matrix instead of it.

    Its weights are no rows of the pool: a vocabulary of rows for every slot would be paid by all
    adapters and used by few.
    """

    name: str  # for example "model.embed_tokens"
    in_features: int  # the embedding's are tokens
    out_features: int  # the head's are tokens
    weight_shape: tuple[int, int]  # as the base model keeps it
    has_bias: bool = False


@dataclass(frozen=True)
class AdapterLayout:
    """Every module that can carry LoRA, in the order of computation, and both ends."""

    modules: tuple[FusedModule, ...]
    embedding: End | None = None  # None: of a kind that takes no LoRA
    head: End | None = None
    tied: bool = False  # both ends share one weight in the base model

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Every projection by its PEFT name."""
        return {
            projection.name: Target(m, s, module.in_features, projection.out_features)
            for m, module in enumerate(self.modules)
            for s, projection in enumerate(module.projections)
        }

    @cached_property
    def ends(self) -> dict[str, End]:
        """Both ends by their PEFT names."""
        return {end.name: end for end in (self.embedding, self.head) if end}

    @cached_property
    def row_elements(self) -> int:
        """Numbers in one rank row over all modules."""
        return sum(len(m.projections) * m.in_features + m.out_features for m in self.modules)

    def max_elements(self, rank: int) -> int:
        """Most numbers that the files of one adapter of this rank can hold and be applied."""
        vectors = 2 * sum(module.out_features for module in self.modules)
        ends = sum(
            end.in_features * end.out_features
            + rank * (end.in_features + end.out_features)
            + 2 * end.out_features
            for end in self.ends.values()
        )
        return rank * self.row_elements + vectors + ends

    def page_bytes(self, element_bytes: int) -> int:
        """Bytes of one page of the rank pool over all modules."""
        return PAGE_ROWS * self.row_elements * element_bytes


def pages_for(rank: int) -> int:
    """Pages that a rank needs."""
    return -(-rank // PAGE_ROWS)
