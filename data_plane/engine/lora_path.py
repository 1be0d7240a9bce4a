"""LoRA, of projections and of ends, by one implementation that another can replace before the first step.

Modules keep the operations that they were made with, and whether launches fit the device shows only
when decode steps are recorded, after they were made. Knows no implementation.
"""

from torch import Tensor

from kernels.lora.end_ops import EndOps
from kernels.lora.ops import LoraOps
from kernels.lora.pool import LoraModule
from kernels.lora.segments import Segments


class LoraPath(LoraOps):
    """Implements `LoraOps` by `present`."""

    def __init__(self, present: LoraOps) -> None:
        self.present = present

    def hidden(self, segments: Segments, module: LoraModule, x: Tensor) -> Tensor:
        """See `LoraOps.hidden`."""
        return self.present.hidden(segments, module, x)

    def shrink(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.shrink`."""
        self.present.shrink(x, module, segments, out=out)

    def expand(self, hidden: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.expand`."""
        self.present.expand(hidden, module, segments, out=out)

    def add(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        """See `LoraOps.add`."""
        self.present.add(x, module, segments, out=out)


class EndPath(EndOps):
    """Implements `EndOps` by `present`."""

    def __init__(self, present: EndOps) -> None:
        self.present = present

    def change_embeddings(self, ids: Tensor, segments: Segments, *, multiplier: Tensor, out: Tensor) -> None:
        """See `EndOps.change_embeddings`."""
        self.present.change_embeddings(ids, segments, multiplier=multiplier, out=out)

    def change_logits(self, x: Tensor, segments: Segments, rows: Tensor, *, out: Tensor) -> None:
        """See `EndOps.change_logits`."""
        self.present.change_logits(x, segments, rows, out=out)
