"""What an adapter changes beside its rank rows: output columns, the embedding, the output head.

    columns  y[t] = y[t] · scale + shift                      before LoRA is added (DoRA, lora_bias)
    end      y[t] = what W' gives instead of W                (modules_to_save)
             y[t] = y[t] · scale + shift + (x[t] Aᵀ) B        (LoRA on the embedding or the head)

Allocated only for adapters that have it and bound with their slot. Scaling is folded into B and
shift. Values only; `changes` computes with them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Affine:
    """Scale and shift of output columns, each [out_features] fp32; None: by 1, by 0."""

    scale: Tensor | None = None
    shift: Tensor | None = None

    def moved(self, move: Move) -> "Affine":
        """The same with every tensor moved."""
        return Affine(_moved(self.scale, move), _moved(self.shift, move))

    def __call__(self, y: Tensor) -> Tensor:
        """Return y · scale + shift in fp32, for `y` [num_tokens, out_features]."""
        y = y.float() if self.scale is None else y.float() * self.scale
        return y if self.shift is None else y + self.shift

    def tensors(self) -> Iterator[Tensor | None]:
        """What it holds."""
        yield from (self.scale, self.shift)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The adapter's own matrix of an end, in the base model's dtype and orientation."""

    weight: Tensor
    bias: Tensor | None = None

    def moved(self, move: Move) -> "Replacement":
        """The same with every tensor moved."""
        return Replacement(move(self.weight), _moved(self.bias, move))

    def tensors(self) -> Iterator[Tensor | None]:
        """What it holds."""
        yield from (self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LowRank:
    """LoRA on an end. Rows of the embedding's Aᵀ are looked up; the head's is a view of A, [rank, inputs]."""

    a_t: Tensor  # [in_features, rank]
    b: Tensor  # [rank, out_features]
    affine: Affine | None = None

    def moved(self, move: Move) -> "LowRank":
        """The same with every tensor moved."""
        affine = self.affine.moved(move) if self.affine else None
        # As A, where it lies so: a move of a turned view may turn its memory.
        a_t = move(self.a_t) if self.a_t.is_contiguous() else move(self.a_t.t()).t()
        return LowRank(a_t, move(self.b), affine)

    @property
    def rank(self) -> int:
        """Columns of Aᵀ."""
        return self.b.shape[0]

    def tensors(self) -> Iterator[Tensor | None]:
        """What it holds."""
        yield from (self.a_t, self.b)
        yield from self.affine.tensors() if self.affine else ()


EndChange = Replacement | LowRank


@dataclass(frozen=True, slots=True)
class SlotSide:
    """Everything that one adapter has beside its rank rows."""

    affines: tuple[Affine | None, ...]  # by module
    embedding: EndChange | None = None
    head: EndChange | None = None

    @property
    def rank(self) -> int:
        """Largest rank of LoRA on an end."""
        return max((end.rank for end in (self.embedding, self.head) if isinstance(end, LowRank)), default=0)

    @property
    def changes_ends(self) -> bool:
        """Whether it changes the embedding or the head."""
        return self.embedding is not None or self.head is not None

    def moved(self, move: Move) -> "SlotSide":
        """The same with every tensor moved: to another device, or to memory that copies can read."""
        return SlotSide(
            tuple(affine.moved(move) if affine else None for affine in self.affines),
            self.embedding.moved(move) if self.embedding else None,
            self.head.moved(move) if self.head else None,
        )

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors."""
        changes = (*self.affines, self.embedding, self.head)
        return sum(
            tensor.nbytes for change in changes if change for tensor in change.tensors() if tensor is not None
        )


def _moved(tensor: Tensor | None, move: Move) -> Tensor | None:
    return None if tensor is None else move(tensor)
