"""An adapter's weights in the rank pool's layout, in host memory.

    A  [rank, num_slices, in_features]     B  [rank, out_features], transposed, scaling folded in

of every module that the adapter changes; rank is the largest of the module's slices, and rows
past a slice's own rank are zero. Scaling is multiplied once, in fp32, before the cast.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data_plane.adapters.layout import AdapterLayout, FusedModule, pages_for
from data_plane.errors import AdapterRefused


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two matrices of one projection as PEFT stores them, checked."""

    name: str  # of the projection
    a: Tensor  # [rank, in_features]
    b: Tensor  # [out_features, rank]
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class PackedModule:
    """One module's weights."""

    a: Tensor
    b: Tensor
    ranks: tuple[int, ...]  # of each slice; 0 where the adapter does not change it


@dataclass(frozen=True)
class PackedLora:
    """Implements `PackedAdapter`. Immutable; shared by the CPU cache and the pool."""

    modules: tuple[PackedModule | None, ...]  # by module of the layout; None: unchanged
    ranks: tuple[tuple[int, ...], ...]  # [module][slice]

    @cached_property
    def rank(self) -> int:
        """Largest rank of any module."""
        return max((max(ranks) for ranks in self.ranks), default=0)

    @cached_property
    def num_bytes(self) -> int:
        """Host memory it takes."""
        return sum(module.a.nbytes + module.b.nbytes for module in self.modules if module)

    @property
    def num_pages(self) -> int:
        """Pages of the rank pool it needs."""
        return pages_for(self.rank)


def pack(pairs: Iterable[LoraPair], layout: AdapterLayout, dtype: torch.dtype) -> PackedLora:
    """Lay out checked pairs for the pool; refuse numbers that `dtype` cannot hold."""
    by_name = {pair.name: pair for pair in pairs}
    modules = tuple(_pack_module(module, by_name, dtype) for module in layout.modules)
    ranks = tuple(
        packed.ranks if packed else (0,) * len(module.projections)
        for packed, module in zip(modules, layout.modules, strict=True)
    )
    return PackedLora(modules, ranks)


def _pack_module(
    module: FusedModule, by_name: dict[str, LoraPair], dtype: torch.dtype
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
        _transpose_scaled(pair.b, pair.scaling, out=b[: pair.rank, columns])
        _refuse_unfit(pair, a[: pair.rank, i], b[: pair.rank, columns])
    return PackedModule(a, b, ranks)


def _transpose_scaled(b: Tensor, scaling: float, *, out: Tensor) -> None:
    """out[r, o] = scaling * b[o, r], multiplied in fp32."""
    # In one piece: torch's own transposing copy beats tiles of 64 to 512 rows made here (100 against
    # 120-600 µs for [4096, 16]), whose calls cost more than the cache misses they save.
    out.copy_((b.float() * scaling).t())


def _refuse_unfit(pair: LoraPair, a: Tensor, b: Tensor) -> None:
    """NaN and infinity, of the file or of the cast: aminmax shows both and reads the values once."""
    for matrix, source, values in (("A", pair.a, a), ("B", pair.b, b)):
        if all(math.isfinite(bound) for bound in values.aminmax()):
            continue
        tensor = f"tensor {pair.name}.lora_{matrix}.weight"
        if torch.isfinite(source).all():
            raise AdapterRefused(f"{tensor}: has values that {values.dtype} cannot hold")
        raise AdapterRefused(f"{tensor}: has values that are not finite")
