"""LoRA whose launches read the step from the device, as a Protocol: the caller moves it with the rest.

`ops` implements it; reaches no Triton, so that host code can be tried without.
"""

from typing import Protocol

from kernels.lora.ops import LoraOps
from kernels.lora.segments import Segments
from kernels.lora.triton.tiles import LaunchShape, StepTiles


class TiledLoraOps(LoraOps, Protocol):
    """`LoraOps` in two parts a step: host memory, then the device."""

    def tiles(
        self, segments: Segments, shape: LaunchShape | None = None, max_tokens: int | None = None
    ) -> StepTiles:
        """What the launches read, in host memory; `shape` and `max_tokens` are a captured graph's."""

    def begin(self, segments: Segments, step: StepTiles) -> None:
        """From now on the launches for `segments` read `step`, which is on the device."""
