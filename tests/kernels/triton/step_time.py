"""Times on a device: one launch, and a whole decode step of a model's projections as a CUDA graph.

Only what a GPU has: nothing here runs without CUDA. Every time is the median of replays between
events, with the last-level cache overwritten before each launch that is timed alone.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows, SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.triton.configs import BlockTable, rank_bound
from kernels.lora.triton.ops import TritonLoraOps
from kernels.lora.triton.tiles import LaunchShape
from tests.kernels.triton.cases import build, operations
from tests.kernels.triton.roofline import Model, Traffic
from tests.kernels.triton.tuner import Sample

FLUSH_BYTES = 256 * 2**20  # more than any last-level cache


def capture(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Record `work` after running it, so that everything is compiled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def replay_seconds(graph: torch.cuda.CUDAGraph, num_replays: int, flush: Tensor | None = None) -> float:
    """Median time of a replay."""
    times = []
    for _ in range(num_replays):
        if flush is not None:
            flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


class LaunchTimer:
    """Times one launch of a sample under a block table; a sample's tensors are made once."""

    def __init__(self, device: str, num_replays: int = 15) -> None:
        self._device, self._num_replays = device, num_replays
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
        self._sample: Sample | None = None

    def __call__(self, sample: Sample, table: BlockTable) -> float:
        """Seconds; inf where the block sizes do not fit the device."""
        if sample != self._sample:
            self._sample, self._case = sample, sample.case(torch.bfloat16, self._device)
            self._problem = build(self._case)
        problem, segments = self._problem, build_segments(self._case.slots)
        ops, module, out = operations(self._case, problem, table), problem.module, problem.base
        try:
            hidden = ops.hidden(segments, module, problem.x).zero_()
            if sample.kernel == "shrink":
                graph = capture(lambda: ops.shrink(problem.x, module, segments, out=hidden))
            else:
                graph = capture(lambda: ops.expand(hidden, module, segments, out=out))
            return replay_seconds(graph, self._num_replays, self._flush)
        except OutOfResources:
            return float("inf")


@dataclass(frozen=True, slots=True)
class Layer:
    """One fused projection of one layer: weights, its share of the pool, input and output."""

    weight: Tensor
    module: LoraModule
    x: Tensor
    y: Tensor


class Step:
    """The projections of `num_layers` layers of a model, with a rank pool of `num_slots` slots."""

    def __init__(
        self, model: Model, num_layers: int, num_tokens: int, num_slots: int, rank: int, device: str
    ) -> None:
        self._device = device
        count, pages = num_layers * len(model.projections), -(-rank // PAGE_ROWS)
        slices = [len(projection.widths) for _ in range(num_layers) for projection in model.projections]
        slots = SlotTable([self._rows(slot, pages, rank, slices) for slot in range(num_slots)])
        self._layers = []
        for index in range(count):
            projection = model.projections[index % len(model.projections)]
            edges = [sum(projection.widths[:i]) for i in range(len(projection.widths) + 1)]
            columns = tuple(slice(*edges[i : i + 2]) for i in range(len(projection.widths)))
            out, inputs = projection.out_features, projection.in_features
            a = self._random(num_slots * pages * PAGE_ROWS, len(columns), inputs)
            module = LoraModule(index, a, self._random(a.shape[0], out), columns, slots)
            x, y = self._random(num_tokens, inputs), self._random(num_tokens, out)
            self._layers.append(Layer(self._random(out, inputs), module, x, y))
        modules = [layer.module for layer in self._layers]
        self._ops = TritonLoraOps(modules, max_rank=rank, max_tokens=num_tokens)
        self._shape = LaunchShape.for_capture(num_tokens, num_slots, rank_bound(rank))
        self._num_tokens = num_tokens

    def seconds(self, num_adapters: int | None, num_replays: int = 20) -> float:
        """One step; None: without LoRA launches."""
        if num_adapters is None:
            return replay_seconds(capture(self._base), num_replays)
        segments = build_segments([token % num_adapters for token in range(self._num_tokens)])
        self._ops.prepare(segments, self._shape)

        def step() -> None:
            for layer in self._layers:
                torch.mm(layer.x, layer.weight.t(), out=layer.y)
                self._ops.add(layer.x, layer.module, segments, out=layer.y)

        return replay_seconds(capture(step), num_replays)

    def _base(self) -> None:
        for layer in self._layers:
            torch.mm(layer.x, layer.weight.t(), out=layer.y)

    @staticmethod
    def _rows(slot: int, pages: int, rank: int, slices: list[int]) -> SlotRows:
        begin = slot * pages
        return SlotRows(tuple(range(begin, begin + pages)), tuple((rank,) * count for count in slices))

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self._device, dtype=torch.bfloat16).mul_(0.02)


def layer_bytes(model: Model, traffic: Traffic) -> int:
    """Memory of one layer's weights and pool, to choose how many layers fit."""
    weights = sum(p.in_features * p.out_features for p in model.projections)
    rows = traffic.num_adapters * max(traffic.rank, PAGE_ROWS)
    pool = sum(rows * (len(p.widths) * p.in_features + p.out_features) for p in model.projections)
    return 2 * (weights + pool)
