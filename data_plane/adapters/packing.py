"""An adapter's weights in the rank pool's layout, in host memory.

    A  [rank, num_slices, in_features]     B  [rank, out_features], transposed, scaling folded in

of every module that the adapter changes; rank is the largest of the module's slices, and rows
past a slice's own rank are zero. Scaling, and DoRA's scale of each column, are multiplied once, in
fp32, before the cast. What is no rank row is in `side`.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.dora import column_scale
from data_plane.adapters.layout import AdapterLayout, FusedModule, pages_for
from data_plane.adapters.matched import LoraPair, MatchedAdapter
from data_plane.adapters.side_packing import Scales, pack_side
from data_plane.errors import AdapterRefused
from kernels.lora.side import SlotSide


@dataclass(frozen=True, slots=True)
class PackedModule:
    """One module's weights."""

    a: Tensor
    b: Tensor
    ranks: tuple[int, ...]  # of each slice; 0 where the adapter does not change it


@dataclass(frozen=True, slots=True)
class ProjectionWeights:
    """What one projection adds: y[t] += (x[t] Aᵀ) Bᵀ, scaling and DoRA's scale in B."""

    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]


@dataclass(frozen=True)
class PackedLora:
    """Implements `PackedAdapter`. Immutable; shared by the CPU cache and the pool."""

    modules: tuple[PackedModule | None, ...]  # by module of the layout; None: unchanged
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

    def moved(self, move: Callable[[Tensor], Tensor]) -> "PackedLora":
        """The same with every tensor moved."""
        modules = tuple(
            PackedModule(move(module.a), move(module.b), module.ranks) if module else None
            for module in self.modules
        )
        return PackedLora(modules, self.ranks, self.side.moved(move) if self.side else None)

    def clone(self) -> "PackedLora":
        """A copy that shares no memory."""
        return deepcopy(self)

    @property
    def _row_rank(self) -> int:
        return max((max(ranks) for ranks in self.ranks), default=0)


def pack(matched: MatchedAdapter, layout: AdapterLayout, base: BaseWeights, dtype: torch.dtype) -> PackedLora:
    """Lay out a checked adapter for the pool; refuse numbers that `dtype` cannot hold."""
    scales = {
        name: column_scale(pair, pair.magnitude, base)
        for name, pair in matched.pairs.items()
        if pair.magnitude is not None
    }
    modules = tuple(_pack_module(module, matched.pairs, scales, dtype) for module in layout.modules)
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


def _pack_module(
    module: FusedModule, by_name: dict[str, LoraPair], scales: Scales, dtype: torch.dtype
) -> PackedModule | None:
    pairs = [by_name.get(projection.name) for projection in module.projections]
    ranks = tuple(pair.rank if pair else 0 for pair in pairs)
    rank = max(ranks)
    if rank == 0:
        return None
    a = torch.zeros(rank, len(pairs), module.in_features, dtype=dtype)
    b = torch.zeros(rank, module.out_features, dtype=dtype)
    for i, (pair, columns) in enumerate(zip(pairs, module.columns, strict=True)):
        if pair is None:
            continue
        a[: pair.rank, i].copy_(pair.a)
        _transpose_scaled(pair, scales.get(pair.name), out=b[: pair.rank, columns])
        _refuse_unfit(pair, a[: pair.rank, i], b[: pair.rank, columns])
    return PackedModule(a, b, ranks)


def _transpose_scaled(pair: LoraPair, scale: Tensor | None, *, out: Tensor) -> None:
    """out[r, o] = scale[o] * scaling * b[o, r], multiplied in fp32."""
    b = pair.b.float() * pair.scaling
    # In one piece: torch's own transposing copy beats tiles of 64 to 512 rows made here (100 against
    # 120-600 µs for [4096, 16]), whose calls cost more than the cache misses they save.
    out.copy_((b if scale is None else b * scale[:, None]).t())


def _refuse_unfit(pair: LoraPair, a: Tensor, b: Tensor) -> None:
    """NaN and infinity, of the file or of the cast: aminmax shows both and reads the values once."""
    for matrix, source, values in (("A", pair.a, a), ("B", pair.b, b)):
        if all(math.isfinite(bound) for bound in values.aminmax()):
            continue
        tensor = f"tensor {pair.name}.lora_{matrix}.weight"
        if torch.isfinite(source).all():
            raise AdapterRefused(f"{tensor}: has values that {values.dtype} cannot hold")
        raise AdapterRefused(f"{tensor}: has values that are not finite")
