"""What of an adapter is read as tensors: modules with more than rank rows, and what only has to be right.

Plain LoRA on projections has none of it: its rows go from the files into the pool's layout unread.
"""

from collections.abc import Sequence

import torch

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.matched import LoraPair, MatchedAdapter, Matching, Parts, SavedMatrix
from data_plane.adapters.matching import MAGNITUDE
from data_plane.errors import AdapterRefused
from kernels.cpu.matrices import Bytes


def modules_beside(matching: Matching, layout: AdapterLayout) -> tuple[str, ...]:
    """Ends, and projections with biases or with DoRA's vectors."""
    return tuple(
        name
        for name, parts in matching.modules.items()
        if name in layout.ends or "lora_B.bias" in parts or MAGNITUDE in parts
    )


def read_beside(
    names: Sequence[str], matching: Matching, sources: Sequence[Bytes], base: BaseWeights
) -> MatchedAdapter:
    """The tensors of these modules; refuse numbers that do not belong to this base model."""
    _refuse_unlike(matching, sources)
    _refuse_other_base(names, matching, sources, base)
    parts = {name: matching.modules[name] for name in names}
    return MatchedAdapter(
        {
            name: _pair(name, found, matching.scalings[name], sources)
            for name, found in parts.items()
            if "weight" not in found
        },
        {name: _saved(name, found, sources) for name, found in parts.items() if "weight" in found},
    )


def _refuse_unlike(matching: Matching, sources: Sequence[Bytes]) -> None:
    for repeat in matching.repeats:
        if not torch.equal(repeat.part.read(sources), repeat.of_part.read(sources)):
            raise AdapterRefused(
                f"tensor {repeat.name} differs from {repeat.of_name}: ensure_weight_tying makes them one"
            )


def _refuse_other_base(
    names: Sequence[str], matching: Matching, sources: Sequence[Bytes], base: BaseWeights
) -> None:
    for name in names:
        for part in ("weight", "bias"):
            stored = matching.modules[name].get(f"base_layer.{part}")
            if stored is not None and not base.has(name, part, stored.read(sources)):
                raise AdapterRefused(
                    f"tensor {name}.base_layer.{part}: differs from the base model's; "
                    "an adapter of another base model, or with a changed one, is not supported"
                )


def _pair(name: str, parts: Parts, scaling: float, sources: Sequence[Bytes]) -> LoraPair:
    found = {part: tensor.read(sources) for part, tensor in parts.items() if part.startswith("lora_")}
    return LoraPair(
        name,
        found["lora_A.weight"] if "lora_A.weight" in found else found["lora_embedding_A"],
        found["lora_B.weight"] if "lora_B.weight" in found else found["lora_embedding_B"],
        scaling,
        found.get("lora_B.bias"),
        found.get(MAGNITUDE),
    )


def _saved(name: str, parts: Parts, sources: Sequence[Bytes]) -> SavedMatrix:
    bias = parts.get("bias")
    return SavedMatrix(name, parts["weight"].read(sources), bias.read(sources) if bias else None)
