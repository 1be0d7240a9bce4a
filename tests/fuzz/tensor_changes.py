"""Tensor changes: names, shapes, dtypes and numbers of an adapter's tensors, in well-formed files."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "adapter_model.safetensors"

_NAMES = (
    "x", "", ".", "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.lora_embedding_A",
    "base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight", "日本語.lora_A.weight", "a" * 5000,
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "lora_A.weight", "\n", "🙂",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "../x.lora_B.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
)  # fmt: skip
_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64)
_NUMBERS = (float("nan"), float("inf"), float("-inf"), 3.4e38, 1e-45, 1e30)


def _renamed(directory: Path, rng: Random) -> str:
    tensors = load_file(directory / WEIGHTS)
    old, new = rng.choice(sorted(tensors)), rng.choice(_NAMES)
    tensors[new] = tensors.pop(old)
    _save(directory, tensors)
    return f"{old} to {new:.60}"


def _added(directory: Path, rng: Random) -> str:
    tensors = load_file(directory / WEIGHTS)
    name = rng.choice(_NAMES)
    tensors[name] = tensors[rng.choice(sorted(tensors))].clone()
    _save(directory, tensors)
    return f"{name:.60}"


def _removed(directory: Path, rng: Random) -> str:
    tensors = load_file(directory / WEIGHTS)
    gone = rng.sample(sorted(tensors), rng.choice((1, 2, len(tensors))))
    _save(directory, {name: tensor for name, tensor in tensors.items() if name not in gone})
    return str(len(gone))


def _shaped(directory: Path, rng: Random) -> str:
    tensors = load_file(directory / WEIGHTS)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    shapes = [
        tensor[:0],
        tensor[:1],
        tensor[None],
        tensor.flatten(),
        tensor.flatten()[0],
        torch.cat([tensor, tensor]),
    ]
    if tensor.dim() == 2:
        shapes += [tensor.t(), tensor[:, :0], torch.cat([tensor, tensor], 1)]
    tensors[name] = rng.choice(shapes).contiguous().clone()
    _save(directory, tensors)
    return f"{name} {list(tensors[name].shape)}"


def _typed(directory: Path, rng: Random) -> str:
    tensors = load_file(directory / WEIGHTS)
    dtype = rng.choice(_DTYPES)
    for name in sorted(tensors) if rng.random() < 0.5 else [rng.choice(sorted(tensors))]:
        tensors[name] = tensors[name].to(dtype)
    _save(directory, tensors)
    return str(dtype)


def _valued(directory: Path, rng: Random) -> str:
    tensors = load_file(directory / WEIGHTS)
    name, number = rng.choice(sorted(tensors)), rng.choice(_NUMBERS)
    flat = tensors[name].flatten()
    flat[rng.randrange(len(flat)) if rng.random() < 0.7 and len(flat) else slice(None)] = number
    tensors[name] = flat.reshape(tensors[name].shape)
    _save(directory, tensors)
    return f"{name} {number}"


OF_TENSORS: tuple[Callable[[Path, Random], str], ...] = (_renamed, _added, _removed, _shaped, _typed, _valued)


def _save(directory: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
