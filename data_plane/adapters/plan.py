"""Plan: how the adapters of one recipe are packed, decided once from names, kinds, shapes and options.

A recipe's adapters have the same options and the same headers, so a plan that was made for one packs them
all: their rank rows are copied by offsets into their bytes, in one call. What depends on a tensor's name,
dtype or shape is refused when the plan is made, what depends on its numbers when it is used. Immutable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.beside import modules_beside, read_beside
from data_plane.adapters.buffers import Buffers
from data_plane.adapters.dora import column_scale
from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.matched import A, B, Matching
from data_plane.adapters.matching import match_tensors
from data_plane.adapters.packing import PackedLora
from data_plane.adapters.peft_config import PeftConfig
from data_plane.adapters.rooms import Room, Rooms, rooms_of
from data_plane.adapters.side_packing import Scales, pack_side
from data_plane.adapters.weights import StoredTensor
from data_plane.errors import AdapterRefused
from kernels.cpu.matrices import Bytes, Copies, MatrixCopier, MatrixCopy, tensor_at
from kernels.cpu.matrices import Scales as CopyScales


@dataclass(frozen=True, slots=True)
class Target:
    """What adapters are packed for: one base model and one pool."""

    layout: AdapterLayout
    base: BaseWeights
    dtype: torch.dtype  # the pool's


@dataclass(frozen=True, slots=True)
class PackPlan:
    """Packs adapters of one recipe for one base model and one pool."""

    matching: Matching
    beside: tuple[str, ...]  # modules of which tensors are read
    rooms: Rooms
    rows: tuple[str, ...]  # projections, in the order of their copies: first A's, then B's
    copies: tuple[MatrixCopy, ...]
    prepared: Copies
    target: Target

    def pack(self, sources: Sequence[Bytes], buffers: Buffers) -> PackedLora:
        """Lay out an adapter of the recipe; refuse numbers that the pool's dtype cannot hold."""
        layout, base, dtype = self.target.layout, self.target.base, self.target.dtype
        read = read_beside(self.beside, self.matching, sources, base)
        scales = {
            name: column_scale(pair, pair.magnitude, base)
            for name, pair in read.pairs.items()
            if pair.magnitude is not None
        }
        # All rows are in one buffer, so that its memory is taken and given back at once.
        flat = buffers.lend(self.rooms.num_elements * dtype.itemsize).view(dtype)
        self.rooms.clear(flat)
        unfit = self.prepared.run(sources, flat, self._by_copy(scales))
        if unfit is not None:
            raise self._unfit(unfit, sources)
        return PackedLora(flat, self.rooms, pack_side(read, scales, layout, base, dtype))

    def _by_copy(self, scales: Scales) -> CopyScales:
        return (
            {2 * i + 1: scales[name] for i, name in enumerate(self.rows) if name in scales} if scales else {}
        )

    def _unfit(self, number: int, sources: Sequence[Bytes]) -> AdapterRefused:
        copy = self.copies[number]
        tensor = f"tensor {self.rows[number // 2]}.{(A, B)[number % 2]}"
        if torch.isfinite(tensor_at(sources[copy.source], copy.begin, copy.dtype, copy.shape)).all():
            return AdapterRefused(f"{tensor}: has values that {self.target.dtype} cannot hold")
        return AdapterRefused(f"{tensor}: has values that are not finite")


def make_plan(
    tensors: Mapping[str, StoredTensor],
    config: PeftConfig,
    target: Target,
    copier: MatrixCopier,
) -> PackPlan:
    """Match every tensor and give every rank row its place; refuse what cannot be applied."""
    layout = target.layout
    matching = match_tensors(tensors, config, layout)
    rooms = rooms_of(layout, lambda name: _rank(matching, name))
    rows, copies = _rows(matching, rooms)
    prepared = copier.prepare(copies, target.dtype)
    beside = modules_beside(matching, layout)
    return PackPlan(matching, beside, rooms, rows, copies, prepared, target)


def _rank(matching: Matching, name: str) -> int:
    parts = matching.modules.get(name)
    return parts[A].stored.shape[0] if parts else 0


def _rows(matching: Matching, rooms: Rooms) -> tuple[tuple[str, ...], tuple[MatrixCopy, ...]]:
    rows: list[str] = []
    copies: list[MatrixCopy] = []
    for room in filter(None, rooms.rooms):
        for i, projection in enumerate(room.module.projections):
            if room.ranks[i]:
                rows.append(projection.name)
                copies += _pair(matching, projection.name, room, i)
    return tuple(rows), tuple(copies)


def _pair(matching: Matching, name: str, room: Room, number: int) -> tuple[MatrixCopy, MatrixCopy]:
    """Copies of A and B of a module's projection of that number."""
    module = room.module
    a, b = (matching.modules[name][part].stored for part in (A, B))
    to_a = room.begin + number * module.in_features
    to_b = room.begin_b + module.columns[number].start
    return (
        MatrixCopy(*_place(a), to_a, room.row_size),
        MatrixCopy(*_place(b), to_b, module.out_features, turned=True, scaling=matching.scalings[name]),
    )


def _place(tensor: StoredTensor) -> tuple[int, int, torch.dtype, tuple[int, int]]:
    rows, columns = tensor.shape
    return tensor.source, tensor.begin, tensor.dtype, (rows, columns)
