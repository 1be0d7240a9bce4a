"""Stage: a step's tensors, made on the host, go where the model computes.

`HostStage` has nothing to do. `DeviceStage` moves everything by one transfer: tokens, positions,
rows, block tables, LoRA tiles. It knows how a step looks in both places and nothing of who plans
or computes it. Invariant: nothing that it returns is read back by the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from data_plane.engine.inputs import StepInputs
from kernels.device import Device
from kernels.gpu.paging import ChunkTable, chunk_table, on_device
from kernels.lora.pool import SlotTable
from kernels.lora.segments import Segments
from kernels.lora.triton.tiled import TiledLoraOps
from kernels.lora.triton.tiles import LaunchShape, StepTiles


class Stage(Protocol):
    """Puts a step where the model computes."""

    def put(self, inputs: StepInputs) -> StepInputs:
        """The same step, with its tensors there."""


class HostStage:
    """Implements `Stage` where host and device are one."""

    def put(self, inputs: StepInputs) -> StepInputs:
        """See `Stage.put`."""
        return inputs


@dataclass(frozen=True, slots=True)
class Frame:
    """What all steps of a captured graph share: addresses and shapes."""

    buffer: Tensor  # uint8 on the device
    max_context: int  # tokens
    num_tokens: int
    tiles: LaunchShape


@dataclass(frozen=True, slots=True)
class _HostStep:
    """A step in host memory; `moved` takes its tensors, in order, from the device."""

    inputs: StepInputs
    table: ChunkTable
    tiles: StepTiles | None

    def tensors(self) -> list[Tensor]:
        inputs, segments = self.inputs, self.inputs.segments
        return [
            inputs.token_ids,
            inputs.positions,
            inputs.logit_rows,
            inputs.new_blocks,
            inputs.batch.rows,
            *self.table.tensors(),
            *([] if segments is None else [segments.order]),
            *([] if self.tiles is None else [self.tiles.order, self.tiles.tiles, self.tiles.num_tiles]),
        ]


class DeviceStage:
    """Implements `Stage` on a device of its own memory."""

    def __init__(self, device: Device, lora: TiledLoraOps | None, slots: SlotTable) -> None:
        self._device, self._lora, self._slots = device, lora, slots

    def put(self, inputs: StepInputs) -> StepInputs:
        """See `Stage.put`."""
        return self._move(self._described(inputs, None), None)

    def put_into(self, inputs: StepInputs, frame: Frame) -> StepInputs:
        """The same at the frame's addresses; `inputs` has as many chunks as the frame's graph."""
        return self._move(self._described(inputs, frame), frame.buffer)

    def frame_tensors(self, inputs: StepInputs, frame: Frame) -> list[Tensor]:
        """What `put_into` moves, for whoever makes the frame's buffer."""
        return self._described(inputs, frame).tensors()

    def _described(self, inputs: StepInputs, frame: Frame | None) -> _HostStep:
        table = chunk_table(
            inputs.chunks, inputs.batch.block_size, room=None if frame is None else frame.max_context
        )
        tiles = None
        if self._lora is not None and inputs.segments is not None:
            shape, room = (None, None) if frame is None else (frame.tiles, frame.num_tokens)
            tiles = self._lora.tiles(inputs.segments, shape, room)
        return _HostStep(inputs, table, tiles)

    def _move(self, step: _HostStep, buffer: Tensor | None) -> StepInputs:
        inputs = step.inputs
        moved: Sequence[Tensor] = self._device.upload(step.tensors(), buffer)
        token_ids, positions, logit_rows, new_blocks, rows, *rest = moved
        table, rest = step.table.moved(rest[:4]), rest[4:]
        return replace(
            inputs,
            token_ids=token_ids,
            positions=positions,
            logit_rows=logit_rows,
            new_blocks=new_blocks,
            batch=on_device(inputs.batch, table, rows),
            segments=None if inputs.segments is None else self._begin(inputs, step.tiles, rest),
        )

    def _begin(self, inputs: StepInputs, tiles: StepTiles | None, moved: Sequence[Tensor]) -> Segments:
        assert inputs.segments is not None, "called for steps with adapters"
        order, logits = moved[0], None
        # Few adapters change the head: for the others nothing is described.
        if self._slots.changes_ends(inputs.segments):
            logits = inputs.segments.of_rows(inputs.logit_rows)
            logits = logits.moved(logits.order.to(order.device))
        segments = inputs.segments.moved(order, logits)
        if self._lora is not None and tiles is not None:
            order, listed, num_tiles = moved[1:]
            self._lora.begin(segments, StepTiles(order, listed, num_tiles, tiles.shape))
        return segments
