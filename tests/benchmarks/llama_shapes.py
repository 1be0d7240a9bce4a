"""Adapters of Llama-3-8B's shapes, without the model: the layout that its projections give, and random files.

The shapes are those of the model's config.json (https://huggingface.co/meta-llama/Meta-Llama-3-8B).
"""

import torch

from data_plane.adapters.buffers import Buffers
from data_plane.adapters.layout import AdapterLayout, FusedModule, Projection
from data_plane.adapters.packer import LoraPacker
from data_plane.models.weights import FusedWeights, ModelWeights
from kernels.cpu.linear import PlainLinear
from kernels.cpu.matrices import MatrixCopier, TorchCopier

NUM_LAYERS = 32
HIDDEN, INNER, KV = 4096, 14336, 1024
# Projections of one layer that share an input: its size, and each one's name and output.
GROUPS = (
    (HIDDEN, {"self_attn.q_proj": HIDDEN, "self_attn.k_proj": KV, "self_attn.v_proj": KV}),
    (HIDDEN, {"self_attn.o_proj": HIDDEN}),
    (HIDDEN, {"mlp.gate_proj": INNER, "mlp.up_proj": INNER}),
    (INNER, {"mlp.down_proj": HIDDEN}),
)


def layout() -> AdapterLayout:
    """Every projection of every layer; no ends, which adapters of linear layers leave alone."""
    return AdapterLayout(
        tuple(
            FusedModule(
                tuple(Projection(f"model.layers.{layer}.{name}", size) for name, size in outputs.items()),
                in_features,
            )
            for layer in range(NUM_LAYERS)
            for in_features, outputs in GROUPS
        )
    )


def packer(rank: int, buffers: Buffers | None = None, copier: MatrixCopier | None = None) -> LoraPacker:
    """A packer for bf16 adapters up to this rank, without DoRA: only that reads the base's weights."""
    shapes = layout()
    none = torch.empty(0, dtype=torch.bfloat16)
    absent = FusedWeights(PlainLinear(none, None), bias=None, norms_squared=none)
    base = ModelWeights(shapes, [absent] * len(shapes.modules), ends={}, dtype=torch.bfloat16)
    return LoraPacker(
        layout=shapes,
        base=base,
        max_rank=rank,
        max_side_bytes=0,
        dtype=torch.bfloat16,
        buffers=buffers or Buffers(),
        copier=copier or TorchCopier(),
    )


def tensors(rank: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random adapter on every projection, bf16, by PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, target in layout().targets.items():
        for kind, shape in (("A", (rank, target.in_features)), ("B", (target.out_features, rank))):
            values = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
            found[f"base_model.model.{name}.lora_{kind}.weight"] = values
    return found
