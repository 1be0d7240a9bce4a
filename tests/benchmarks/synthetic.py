"""Random PEFT adapters of the real model, made in numbers: real directories, no training.

One random matrix set is drawn a shape; every further adapter is the same bytes with each tensor
rotated by another offset, so 2,000 of them take seconds to make and no two are equal.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PretrainedConfig

from data_plane.adapters.revision import AdapterSource, Revision
from tests.digests import digest_of
from tests.oracle import MODEL_DIR

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEAR = ATTENTION + MLP
TENANT = "bench"
# Small beside the base weights: random adapters must not push activations out of range.
STD = 0.01


class RandomLora:
    """The numbers of adapters of one shape, bf16, and their configuration."""

    def __init__(self, *, rank: int, modules: Sequence[str], seed: int = 0) -> None:
        self.config = peft_config(rank, modules)
        self._tensors = _random_tensors(rank, modules, seed)

    def tensors(self, number: int) -> dict[str, torch.Tensor]:
        """Those of one adapter, by PEFT's names."""
        # Rotated rows of A and B: other numbers in every place, the same size and spread.
        return {key: value.roll(number) for key, value in self._tensors.items()}

    @property
    def num_bytes(self) -> int:
        """What the tensors of one adapter need."""
        return sum(tensor.nbytes for tensor in self._tensors.values())


class AdapterFactory:
    """Makes directories of such adapters under one."""

    def __init__(self, root: Path, *, rank: int, modules: Sequence[str], seed: int = 0) -> None:
        self._root = root
        self._lora = RandomLora(rank=rank, modules=modules, seed=seed)

    def make(self, number: int) -> AdapterSource:
        """The adapter with this number; files that are there already stay."""
        name = f"adapter{number:04d}"
        directory = self._root / name
        weights = directory / "adapter_model.safetensors"
        if not weights.exists():
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "adapter_config.json").write_text(json.dumps(self._lora.config))
            save_file(self._lora.tensors(number), weights)
        return AdapterSource(Revision(TENANT, name, 1, digest_of(directory)), str(directory))

    @property
    def num_bytes(self) -> int:
        """What the tensors of one adapter need."""
        return self._lora.num_bytes


def peft_config(rank: int, modules: Sequence[str]) -> dict[str, object]:
    """The adapter_config.json of an adapter of these modules."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(modules),
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _random_tensors(rank: int, modules: Sequence[str], seed: int) -> dict[str, torch.Tensor]:
    config = AutoConfig.from_pretrained(MODEL_DIR)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config.num_hidden_layers):
        for module in modules:
            inputs, outputs = _shape(config, module)
            block = "self_attn" if module in ATTENTION else "mlp"
            path = f"base_model.model.model.layers.{layer}.{block}.{module}"
            for kind, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                values = torch.randn(shape, generator=generator) * STD
                tensors[f"{path}.lora_{kind}.weight"] = values.to(torch.bfloat16)
    return tensors


def _shape(config: PretrainedConfig, module: str) -> tuple[int, int]:
    """Input and output features of a projection."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * hidden // config.num_attention_heads
    shapes = {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    return shapes[module]
