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
from kernels.lora.triton.ends.tiled import TiledEndOps
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
    tiles: StepTiles | None  # of all tokens
    logit_tiles: (
        StepTiles | None
    )  # of the rows that give logits, where they are other tiles and an end changes

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
            *([] if self.tiles is None else self.tiles.tensors()),
            *([] if self.logit_tiles is None else self.logit_tiles.tensors()),
        ]


class DeviceStage:
    """Implements `Stage` on a device of its own memory."""

    def __init__(
        self, device: Device, slots: SlotTable, lora: TiledLoraOps | None, ends: TiledEndOps | None
    ) -> None:
        """Both `lora` and `ends`, or neither: then they read what they need from the host."""
        self._device, self._slots, self._lora, self._ends = device, slots, lora, ends

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
        segments, tiles, logit_tiles = inputs.segments, None, None
        if self._lora is not None and segments is not None:
            shape, room = (None, None) if frame is None else (frame.tiles, frame.num_tokens)
            tiles = self._lora.tiles(segments, shape, room)
            # All rows of a frame give logits: their tiles are those of the tokens.
            if self._ends is not None and frame is None and self._slots.changes_ends(segments):
                logit_tiles = self._ends.tiles(segments.of_rows(inputs.logit_rows))
        return _HostStep(inputs, table, tiles, logit_tiles)

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
            segments=None if inputs.segments is None else self._begin(step, rest, framed=buffer is not None),
        )

    def _begin(self, step: _HostStep, moved: Sequence[Tensor], *, framed: bool) -> Segments:
        segments, order = step.inputs.segments, moved[0]
        assert segments is not None, "called for steps with adapters"
        if self._lora is None or self._ends is None or step.tiles is None:
            return segments.moved(order, self._logits(step.inputs, segments, order))
        there, tokens = segments.moved(order), step.tiles.moved(moved[1:4])
        self._lora.begin(there, tokens)
        if framed:
            # A captured graph has the ends' launches: they must find this step, whatever its adapters.
            self._ends.begin(there, tokens, tokens)
        elif step.logit_tiles is None:
            self._ends.begin(there, None, None)
        else:
            self._ends.begin(there, tokens, step.logit_tiles.moved(moved[4:7]))
        return there

    def _logits(self, inputs: StepInputs, segments: Segments, order: Tensor) -> Segments | None:
        """For plain PyTorch: few adapters change the head, and for the others nothing is described."""
        if not self._slots.changes_ends(segments):
            return None
        logits = segments.of_rows(inputs.logit_rows)
        return logits.moved(logits.order.to(order.device))
