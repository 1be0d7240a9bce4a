"""What an adapter has beside its rank rows, packed: DoRA's scales, biases of B, changed ends.

Knows the layout and the base's biases; nothing of slots. An adapter without any of it gets None and costs
nothing.
"""

import torch
from torch import Tensor

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.layout import AdapterLayout, End, FusedModule
from data_plane.adapters.matched import LoraPair, MatchedAdapter
from data_plane.errors import AdapterRefused
from kernels.lora.side import Affine, EndChange, LowRank, Replacement, SlotSide

Scales = dict[str, Tensor]  # DoRA's by PEFT name; absent: 1


def pack_side(
    matched: MatchedAdapter,
    scales: Scales,
    layout: AdapterLayout,
    base: BaseWeights,
    dtype: torch.dtype,
) -> SlotSide | None:
    """Pack it, LoRA of the ends in `dtype`, whole matrices in the base's; None when there is none."""
    if not matched.pairs and not matched.saved:
        return None
    side = SlotSide(
        tuple(_module_affine(module, matched, scales, base) for module in layout.modules),
        _end_change(layout.embedding, matched, scales, base, dtype, looked_up=True),
        _end_change(layout.head, matched, scales, base, dtype, looked_up=False),
    )
    return side if side.num_bytes else None


def _module_affine(
    module: FusedModule, matched: MatchedAdapter, scales: Scales, base: BaseWeights
) -> Affine | None:
    pairs = [matched.pairs.get(projection.name) for projection in module.projections]
    parts = [_affine(pair, scales, base) if pair else None for pair in pairs]
    return (
        Affine(
            _columns([part.scale if part else None for part in parts], module, neutral=1.0),
            _columns([part.shift if part else None for part in parts], module, neutral=0.0),
        )
        if any(parts)
        else None
    )


def _columns(parts: list[Tensor | None], module: FusedModule, *, neutral: float) -> Tensor | None:
    """One vector over the fused output, [out_features] fp32."""
    if all(part is None for part in parts):
        return None
    whole = torch.full((module.out_features,), neutral)
    for part, columns in zip(parts, module.columns, strict=True):
        if part is not None:
            whole[columns] = part
    return whole


def _affine(pair: LoraPair, scales: Scales, base: BaseWeights) -> Affine | None:
    """y · s + b (1 - s): DoRA scales what the base computes but for its bias; or B's own bias."""
    if pair.bias is not None:
        return Affine(None, _finite(f"{pair.name}.lora_B.bias", pair.bias.float() * pair.scaling))
    scale, bias = scales.get(pair.name), base.bias(pair.name)
    if scale is None:
        return None
    return Affine(scale, None if bias is None else bias.float() * (1 - scale))


def _end_change(
    end: End | None,
    matched: MatchedAdapter,
    scales: Scales,
    base: BaseWeights,
    dtype: torch.dtype,
    *,
    looked_up: bool,
) -> EndChange | None:
    if end is None:
        return None
    saved, pair = matched.saved.get(end.name), matched.pairs.get(end.name)
    if saved is not None:
        bias = None if saved.bias is None else _cast(f"{end.name}.bias", saved.bias, base.dtype)
        return Replacement(_cast(f"{end.name}.weight", saved.weight, base.dtype), bias)
    if pair is None:
        return None
    b = pair.b.float() * pair.scaling
    scale = scales.get(end.name)
    # See LowRank: rows of Aᵀ are looked up, rows of A are multiplied with.
    a = _cast(f"{end.name}: A", pair.a.t() if looked_up else pair.a, dtype)
    return LowRank(
        a if looked_up else a.t(),
        _cast(f"{end.name}: B", (b if scale is None else b * scale[:, None]).t(), dtype),
        _affine(pair, scales, base),
    )


def _cast(what: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy: what was read is a view of the file's bytes."""
    return _finite(what, tensor.to(dtype, copy=True, memory_format=torch.contiguous_format))


def _finite(what: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise AdapterRefused(f"tensor {what}: has values that {tensor.dtype} cannot hold")
    return tensor
