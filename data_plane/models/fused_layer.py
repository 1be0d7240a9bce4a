"""Stands where a decoder layer of the definition stood; the last of a chain computes them all.

The definition's own layer stays inside, never called: it answers what models ask their layers.
Invariant: between the layers of a chain nothing looks at the stream, so it may be computed at the
end; `chain` is told only what was seen to be so.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_plane.errors import ModelRefused
from data_plane.models.projection import FusedProjection, ProjectionLora
from data_plane.models.step import StepState
from kernels.cpu.calls import LoraCall, computable
from kernels.cpu.native import NativeKernels
from kernels.cpu.native_layer import LayerChain, NativeLayer
from kernels.cpu.native_lora import NativeLoraOps
from kernels.lora.segments import Segments

NO_LORA: tuple[None, ...] = (None,) * 4


class FusedLayer(nn.Module):
    """The C++ kernels' decoder layer with the arguments of transformers' own."""

    def __init__(
        self,
        definition: nn.Module,
        layer: NativeLayer,
        projections: Sequence[FusedProjection],
        state: StepState,
        kernels: NativeKernels,
    ) -> None:
        """`projections`: qkv, o, gate_up and down."""
        super().__init__()
        self.definition = definition
        self.layer = layer
        self._projections, self._state = tuple(projections), state
        self.first = True  # of its chain
        self.chain: LayerChain | None = LayerChain(kernels, [layer])  # None: another layer is the last

    def __getattr__(self, name: str) -> Any:
        """Models ask their layers for their kind (`attention_type`): the definition knows."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("definition"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The residual stream [1, num_tokens, hidden] after this layer."""
        batch, segments = self._state.batch, self._state.segments
        if batch is None:
            raise ModelRefused("a decoder layer was called outside a step")
        lora = NO_LORA if segments is None else [_prepared(p.lora, segments) for p in self._projections]
        x = hidden_states[0].contiguous()
        out = torch.empty_like(x) if self.first else x
        self.layer.prepare(x, out, _rotary(kwargs, hidden_states), batch, lora)
        if self.chain is not None:
            self.chain.run()
        return out[None]


def computes(projection: FusedProjection) -> bool:
    """Whether all that adapters do to this product can be computed inside a layer."""
    lora = projection.lora
    return lora is None or (
        isinstance(lora.ops, NativeLoraOps)
        and lora.module.slots.columns_in_expand
        and computable(lora.module.a)
    )


def _prepared(lora: ProjectionLora | None, segments: Segments) -> LoraCall | None:
    if lora is None:
        return None
    assert isinstance(lora.ops, NativeLoraOps), "`computes` was asked when the layer was made"
    return lora.ops.prepared(lora.module, segments)


def chain(layers: Sequence[FusedLayer], kernels: NativeKernels) -> None:
    """Compute these together from now on: each was seen to get the very tensor that the one before gave."""
    for layer in layers[1:]:
        layer.first = False
    for layer in layers[:-1]:
        layer.chain = None
    layers[-1].chain = LayerChain(kernels, [layer.layer for layer in layers])


def _rotary(kwargs: dict[str, Any], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Cos and sin [num_tokens, rotary_dim] among a layer's arguments."""
    pair = kwargs.get("position_embeddings")
    if not isinstance(pair, tuple) or len(pair) != 2:
        return None
    cos, sin = (part[0].to(like.dtype).contiguous() for part in pair)
    return cos, sin
