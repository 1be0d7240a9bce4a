"""A step's inputs in, logits out: the model as the runner sees it, on whatever device.

`EagerModel` computes a step operator by operator; `graphs` replays captured ones.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from data_plane.engine.inputs import StepInputs
from data_plane.engine.stage import Stage
from data_plane.kv_cache.pool import KvPool
from data_plane.models.base_model import BaseModel
from kernels.lora.pool import SlotTable


@dataclass(frozen=True, slots=True)
class StepParts:
    """What a step model is made of."""

    base: BaseModel
    kv: KvPool
    slots: SlotTable
    max_model_len: int


class StepModel(Protocol):
    """Computes steps; inference mode is the caller's."""

    def logits(self, inputs: StepInputs) -> Tensor:
        """Write the step's K and V; return [num_draws, vocab_size] of `inputs.logit_rows`, in their order."""


class EagerModel:
    """Implements `StepModel`: any step, one operator after the other."""

    def __init__(self, base: BaseModel, kv: KvPool, stage: Stage) -> None:
        self._base, self._kv, self._stage = base, kv, stage

    def logits(self, inputs: StepInputs) -> Tensor:
        """See `StepModel.logits`."""
        inputs = self._stage.put(inputs)
        if inputs.new_blocks.shape[0]:
            self._kv.clear(inputs.new_blocks)
        return self._base.forward(
            inputs.token_ids, inputs.positions, inputs.logit_rows, inputs.batch, inputs.segments
        )
