"""What the layers of the model must know of the step that runs.

The runner sets it before every forward pass; layers hold a reference from their making on, so
nothing travels through the arguments of transformers' own modules and nothing is global.
"""

from dataclasses import dataclass

from torch import Tensor

from kernels.cpu.paging import PagedBatch
from kernels.lora.segments import Segments


@dataclass(slots=True)
class StepState:
    """Mutable on purpose; only the step loop writes it."""

    batch: PagedBatch | None = None
    segments: Segments | None = None  # None: no token has an adapter
    logit_rows: Tensor | None = None  # [num_logits] int64: rows of the batch that the head computes

    def set(self, batch: PagedBatch, segments: Segments | None, logit_rows: Tensor) -> None:
        """Begin a step."""
        self.batch, self.segments, self.logit_rows = batch, segments, logit_rows
