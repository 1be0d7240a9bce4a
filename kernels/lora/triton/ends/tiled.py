"""Changes of the ends whose launches read the step from the device, as a Protocol: see `triton.tiled`.

`ops` implements it; reaches no Triton, so that host code can be tried without.
"""

from typing import Protocol

from kernels.lora.end_ops import EndOps
from kernels.lora.segments import Segments
from kernels.lora.triton.tiles import StepTiles


class TiledEndOps(EndOps, Protocol):
    """`EndOps` in two parts a step: host memory, then the device."""

    def tiles(self, rows: Segments) -> StepTiles:
        """What the head's launches read for these rows, in host memory."""

    def begin(self, segments: Segments, tokens: StepTiles | None, rows: StepTiles | None) -> None:
        """From now on the launches read these, which are on the device: of all tokens, and of the rows that
        give logits. None: no adapter of `segments`, the step's, changes an end, and nothing is launched.
        """
