"""An adapter's weights in the rank pool's layout, in host memory.

    A  [rank, num_slices, in_features]     B  [rank, out_features], transposed, scaling folded in

of every module that the adapter changes; rank is the largest of the module's slices, and rows
past a slice's own rank are zero. Scaling, and DoRA's scale of each column, are multiplied once, in
fp32, before the cast. What is no rank row is in `side`.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.buffers import Buffers
from data_plane.adapters.dora import column_scale
from data_plane.adapters.layout import AdapterLayout, FusedModule, pages_for
from data_plane.adapters.matched import LoraPair, MatchedAdapter
from data_plane.adapters.side_packing import Scales, pack_side
from data_plane.errors import AdapterRefused
from kernels.cpu.matrices import MatrixCopier, MatrixCopy
from kernels.lora.side import SlotSide


@dataclass(frozen=True, slots=True)
class PackedModule:
    """One module's weights."""

    a: Tensor
    b: Tensor
    ranks: tuple[int, ...]  # of each slice; 0 where the adapter does not change it


Modules = tuple[PackedModule | None, ...]  # by module of the layout; None: unchanged


@dataclass(frozen=True, slots=True)
class ProjectionWeights:
    """What one projection adds: y[t] += (x[t] Aᵀ) Bᵀ, scaling and DoRA's scale in B."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]


@dataclass(frozen=True)
class PackedLora:
    """Implements `PackedAdapter`. Immutable; shared by the CPU cache and the pool."""

    modules: Modules
    ranks: tuple[tuple[int, ...], ...]  # [module][slice]
    side: SlotSide | None = None

    @cached_property
    def rank(self) -> int:
        """Largest rank of any module, the ends too."""
        return max(self._row_rank, self.side.rank if self.side else 0)

    @cached_property
    def num_bytes(self) -> int:
        """Host memory it takes."""
        return sum(module.a.nbytes + module.b.nbytes for module in self.modules if module) + self.side_bytes

    @cached_property
    def side_bytes(self) -> int:
        """Memory that its slot takes beside the pages."""
        return self.side.num_bytes if self.side else 0

    @property
    def num_pages(self) -> int:
        """Pages of the rank pool it needs; one at least, because a slot is known by its pages."""
        return max(1, pages_for(self._row_rank))

    def weights_of(self, name: str, layout: AdapterLayout) -> ProjectionWeights | None:
        """Views of one projection's matrices; None where the adapter does not change it."""
        target = layout.targets[name]
        module, rank = self.modules[target.module], self.ranks[target.module][target.slice]
        if module is None or rank == 0:
            return None
        columns = layout.modules[target.module].columns[target.slice]
        return ProjectionWeights(module.a[:rank, target.slice], module.b[:rank, columns].t())

    def clone(self) -> "PackedLora":
        """A copy that shares no memory."""
        return deepcopy(self)

    @property
    def _row_rank(self) -> int:
        return max((max(ranks) for ranks in self.ranks), default=0)


def pack(
    matched: MatchedAdapter,
    layout: AdapterLayout,
    base: BaseWeights,
    dtype: torch.dtype,
    *,
    buffers: Buffers,
    copier: MatrixCopier,
) -> PackedLora:
    """Lay out a checked adapter for the pool; refuse numbers that `dtype` cannot hold.

    All rank rows are in one buffer, so that its memory is taken and given back at once.
    """
    scales = {
        name: column_scale(pair, pair.magnitude, base)
        for name, pair in matched.pairs.items()
        if pair.magnitude is not None
    }
    modules = _rooms(layout, matched.pairs, dtype, buffers)
    _fill(modules, layout, matched.pairs, scales, copier)
    ranks = tuple(
        packed.ranks if packed else (0,) * len(module.projections)
        for packed, module in zip(modules, layout.modules, strict=True)
    )
    return PackedLora(modules, ranks, pack_side(matched, scales, layout, base, dtype))


def pack_zeros(layout: AdapterLayout, rank: int, dtype: torch.dtype) -> PackedLora:
    """An adapter of this rank on every projection that adds nothing."""
    modules = tuple(
        PackedModule(
            torch.zeros(rank, len(module.projections), module.in_features, dtype=dtype),
            torch.zeros(rank, module.out_features, dtype=dtype),
            (rank,) * len(module.projections),
        )
        for module in layout.modules
    )
    return PackedLora(modules, tuple(module.ranks for module in modules))


def _rooms(
    layout: AdapterLayout, by_name: Mapping[str, LoraPair], dtype: torch.dtype, buffers: Buffers
) -> Modules:
    """Memory for every module that is changed; contents undefined, but rows past a slice's rank are zero."""
    ranks = [
        tuple(by_name[part.name].rank if part.name in by_name else 0 for part in module.projections)
        for module in layout.modules
    ]
    counts = [
        max(of_slices) * (len(of_slices) * module.in_features + module.out_features)
        for of_slices, module in zip(ranks, layout.modules, strict=True)
    ]
    flat = buffers.lend(sum(counts) * dtype.itemsize).view(dtype)
    begins = accumulate(counts, initial=0)
    return tuple(
        _room(flat, begin, module, of_slices) if max(of_slices) else None
        for module, of_slices, begin in zip(layout.modules, ranks, begins, strict=False)
    )


def _room(flat: Tensor, begin: int, module: FusedModule, ranks: tuple[int, ...]) -> PackedModule:
    rank, width = max(ranks), len(ranks) * module.in_features
    end_a = begin + rank * width
    if min(ranks) < rank:
        flat[begin : end_a + rank * module.out_features].zero_()
    return PackedModule(
        flat.as_strided((rank, len(ranks), module.in_features), (width, module.in_features, 1), begin),
        flat.as_strided((rank, module.out_features), (module.out_features, 1), end_a),
        ranks,
    )


def _fill(
    modules: Modules,
    layout: AdapterLayout,
    by_name: Mapping[str, LoraPair],
    scales: Scales,
    copier: MatrixCopier,
) -> None:
    pairs, copies = [], []
    for packed, module in zip(modules, layout.modules, strict=True):
        if packed is None:
            continue
        for i, (projection, columns) in enumerate(zip(module.projections, module.columns, strict=True)):
            pair = by_name.get(projection.name)
            if pair is None:
                continue
            pairs.append(pair)
            copies.append(MatrixCopy(pair.a, packed.a[: pair.rank, i]))
            scale = scales.get(pair.name)
            copies.append(MatrixCopy(pair.b, packed.b[: pair.rank, columns], True, pair.scaling, scale))
    unfit = copier.copy(copies)
    if unfit is not None:
        raise _unfit(pairs[unfit // 2], "AB"[unfit % 2], copies[unfit])


def _unfit(pair: LoraPair, matrix: str, copy: MatrixCopy) -> AdapterRefused:
    tensor = f"tensor {pair.name}.lora_{matrix}.weight"
    if torch.isfinite(copy.source).all():
        return AdapterRefused(f"{tensor}: has values that {copy.out.dtype} cannot hold")
    return AdapterRefused(f"{tensor}: has values that are not finite")
