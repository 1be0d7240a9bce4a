"""Decode steps as captured graphs: one replay instead of thousands of launches.

A graph has a number of rows and is with LoRA or without; base-only steps take one without. A step
is padded to the next number of rows with rows that touch nothing: token 0 at position 0, its KV in
a scratch block that is nobody's, no adapter, its logits not looked at. What has no graph (chunks of
prompts) is computed eagerly. Host logic: what a graph is comes from outside, so all of this runs on
a CPU with a stand-in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from data_plane.engine.inputs import StepInputs
from data_plane.engine.stage import DeviceStage, Frame
from data_plane.engine.step_model import StepModel, StepParts
from kernels.cpu.paging import PagedChunk, paged_batch
from kernels.device import Device
from kernels.gpu.packed import PackedLayout
from kernels.lora.segments import Segments, build_segments
from kernels.lora.triton.configs import rank_bound
from kernels.lora.triton.tiles import LaunchShape

SIZE_STEP = 8  # rows between two captured sizes


class CapturedGraph(Protocol):
    """Work that was recorded once."""

    def replay(self) -> Tensor:
        """Do it again with what is at its addresses now; its output, valid until the next replay."""


class Recorder(Protocol):
    """Makes graphs."""

    def record(self, work: Callable[[], Tensor]) -> CapturedGraph:
        """Run `work` until all is compiled, then record it."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph and the addresses that it reads."""

    graph: CapturedGraph
    frame: Frame


def capture_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """1, 2, 4, then every 8 rows, up to what holds `max_num_seqs`."""
    sizes = (1, 2, 4, *range(SIZE_STEP, max_num_seqs + SIZE_STEP, SIZE_STEP))
    enough = next(size for size in sizes if size >= max_num_seqs)
    return tuple(size for size in sizes if size <= enough)


def padded(inputs: StepInputs, num_rows: int, scratch_block: int) -> StepInputs:
    """The decode step with rows added that touch nothing; draws and new blocks are padded too."""
    missing = num_rows - len(inputs.chunks)
    idle = PagedChunk(past=0, length=1, blocks=(scratch_block,))
    chunks = (*inputs.chunks, *(idle,) * missing)
    segments = inputs.segments
    return replace(
        inputs,
        token_ids=_extended(inputs.token_ids, num_rows, 0),
        positions=_extended(inputs.positions, num_rows, 0),
        logit_rows=_extended(inputs.logit_rows, num_rows, 0),
        new_blocks=_extended(inputs.new_blocks, num_rows, scratch_block),
        batch=paged_batch(chunks, inputs.batch.block_size),
        segments=segments and Segments(_extended(segments.order, num_rows, 0), segments.tiles, num_rows),
        chunks=chunks,
    )


class GraphedModel:
    """Implements `StepModel` by graphs where one fits, by `eager` elsewhere."""

    def __init__(
        self,
        eager: StepModel,
        parts: StepParts,
        stage: DeviceStage,
        device: Device,
        *,
        sizes: Sequence[int],
        max_rank: int | None,
    ) -> None:
        """The last block of the KV cache is the scratch block; `max_rank` None: there are no adapters."""
        self._eager, self._parts, self._stage, self._device = eager, parts, stage, device
        self._sizes, self._max_rank = tuple(sorted(sizes)), max_rank
        self._scratch_block = parts.kv.num_blocks - 1
        self._graphs: dict[tuple[int, bool], _Captured] = {}

    def capture(self, recorder: Recorder) -> int:
        """Record every graph, largest first, so that the others fit into its memory; their number."""
        kinds = (False,) if self._max_rank is None else (False, True)
        for size in reversed(self._sizes):
            for with_lora in kinds:
                self._graphs[size, with_lora] = self._captured(recorder, size, with_lora)
        return len(self._graphs)

    def logits(self, inputs: StepInputs) -> Tensor:
        """See `StepModel.logits`."""
        captured = self._graph_for(inputs)
        if captured is None:
            return self._eager.logits(inputs)
        step = padded(inputs, captured.frame.num_tokens, self._scratch_block)
        moved = self._stage.put_into(step, captured.frame)
        num_new = inputs.new_blocks.shape[0]
        if num_new:
            self._parts.kv.clear(moved.new_blocks[:num_new])
        return captured.graph.replay().index_select(0, moved.logit_rows[: inputs.logit_rows.shape[0]])

    def _graph_for(self, inputs: StepInputs) -> _Captured | None:
        if inputs.batch.prefills:
            return None
        size = next((size for size in self._sizes if size >= len(inputs.chunks)), None)
        return None if size is None else self._graphs.get((size, inputs.segments is not None))

    def _captured(self, recorder: Recorder, size: int, with_lora: bool) -> _Captured:
        nothing = self._idle_step(size, with_lora)
        frame = Frame(
            torch.empty(0, dtype=torch.uint8),
            self._parts.max_model_len,
            size,
            LaunchShape.for_capture(size, len(self._parts.slots.rows), rank_bound(self._max_rank or 1)),
        )
        num_bytes = PackedLayout.of(self._stage.frame_tensors(nothing, frame)).num_bytes
        buffer = torch.zeros(num_bytes, dtype=torch.uint8, device=self._device.torch)
        frame = replace(frame, buffer=buffer)
        moved = self._stage.put_into(nothing, frame)
        all_rows = torch.arange(size, device=self._device.torch)

        def work() -> Tensor:
            return self._parts.base.forward(
                moved.token_ids, moved.positions, all_rows, moved.batch, moved.segments
            )

        return _Captured(recorder.record(work), frame)

    def _idle_step(self, size: int, with_lora: bool) -> StepInputs:
        """A step whose every row is padding."""
        none = torch.zeros(0, dtype=torch.int64)
        # Slot 0 stands for any: a capture records launches, not what they find.
        segments = build_segments([0] * size) if with_lora else None
        empty = StepInputs(
            none, none, none, paged_batch((), self._parts.kv.block_size), segments, (), none, ()
        )
        return padded(empty, size, self._scratch_block)


def _extended(values: Tensor, length: int, value: int) -> Tensor:
    extended = values.new_full((length,), value)
    extended[: values.shape[0]] = values
    return extended
