"""Which tensor of an adapter's file belongs to which module; every one does, or it is refused.

Pure: tensors, config and layout in, checked pairs out. A tensor that is not applied and a module
that gets none would both be silent no-ops, so neither is let through.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from data_plane.adapters.base_weights import BaseWeights
from data_plane.adapters.expected import ExpectedTensor, Parts, expected_tensors, ties
from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.matched import LoraPair, MatchedAdapter, SavedMatrix
from data_plane.adapters.peft_config import PeftConfig
from data_plane.errors import AdapterRefused

PREFIX = "base_model.model."
# Some versions of PEFT keep DoRA's vector as the weight of a module.
MAGNITUDE = "lora_magnitude_vector"
KEY = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_[AB]\.(?:weight|bias)|lora_embedding_[AB]"
    rf"|{MAGNITUDE}(?:\.weight)?|base_layer\.(?:weight|bias)|weight|bias)"
)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Found = dict[str, dict[str, Tensor]]  # by module, then by part


def match_tensors(
    tensors: Mapping[str, Tensor], config: PeftConfig, layout: AdapterLayout, base: BaseWeights
) -> MatchedAdapter:
    """Put every tensor in its place and check names, dtypes and shapes."""
    expected = expected_tensors(config, layout)
    found: Found = {}
    for key, tensor in tensors.items():
        module, part = _parse(key, expected, layout)
        parts = found.setdefault(module, {})
        if part in parts:
            raise AdapterRefused(f"tensor {key}: {module} has a second {part}")
        parts[part] = tensor
        _check(key, tensor, expected[module][part])
    if ties(config, layout):
        _tie(found, expected, layout)
    _refuse_missing(found, expected)
    _refuse_other_base(found, base)
    return _matched(found, config)


def _parse(key: str, expected: Mapping[str, Parts], layout: AdapterLayout) -> tuple[str, str]:
    match = KEY.fullmatch(key.removeprefix(PREFIX))
    if match is None:
        raise AdapterRefused(f"tensor {key}: is neither of LoRA nor of a saved module")
    module, part = match["module"], match["part"]
    part = MAGNITUDE if part.startswith(MAGNITUDE) else part
    if module not in layout.targets and module not in layout.ends:
        raise AdapterRefused(f"tensor {key}: the base model has no module {module} that takes LoRA")
    if module not in expected:
        raise AdapterRefused(
            f"tensor {key}: {module} is not among target_modules or modules_to_save of adapter_config.json"
        )
    if part not in expected[module]:
        raise AdapterRefused(
            f"tensor {key}: only {' and '.join(expected[module])} are expected by adapter_config.json"
        )
    return module, part


def _check(key: str, tensor: Tensor, expected: ExpectedTensor) -> None:
    if tuple(tensor.shape) != expected.shape:
        raise AdapterRefused(
            f"tensor {key}: shape {list(tensor.shape)}, expected {list(expected.shape)}"
            + _vocabulary_hint(key)
        )
    if tensor.dtype not in FLOATS:
        raise AdapterRefused(f"tensor {key}: dtype {tensor.dtype} is not a floating-point type")


def _vocabulary_hint(key: str) -> str:
    is_end = not re.search(r"\.lora_[AB]\.", key)
    return " (an adapter with a vocabulary of its own, lora_extra_vocab_size, is not supported)" * is_end


def _tie(found: Found, expected: Mapping[str, Parts], layout: AdapterLayout) -> None:
    """Give the head the embedding's tensors; refuse a head that has others."""
    assert layout.embedding is not None, "tied ends exist"
    assert layout.head is not None, "tied ends exist"
    embedding, head = found.get(layout.embedding.name, {}), found.setdefault(layout.head.name, {})
    for part, source, turned in (
        ("lora_A.weight", "lora_embedding_B", True),
        ("lora_B.weight", "lora_embedding_A", True),
        ("weight", "weight", False),
    ):
        if part not in expected[layout.head.name] or source not in embedding:
            continue
        tied = embedding[source].t() if turned else embedding[source]
        if not torch.equal(head.setdefault(part, tied), tied):
            raise AdapterRefused(
                f"tensor {layout.head.name}.{part} differs from {layout.embedding.name}.{source}: "
                "ensure_weight_tying makes them one"
            )


def _refuse_missing(found: Found, expected: Mapping[str, Parts]) -> None:
    for module, parts in expected.items():
        missing = [
            part for part, tensor in parts.items() if tensor.required and part not in found.get(module, {})
        ]
        if missing and found.get(module):
            raise AdapterRefused(f"tensor {module}.{missing[0]} is missing, its partner is there")
        if missing:
            raise AdapterRefused(
                f"{module}: named by target_modules or modules_to_save, but the files have no tensors for it"
            )
    if not expected:
        raise AdapterRefused("target_modules matches no module of the base model")


def _refuse_other_base(found: Found, base: BaseWeights) -> None:
    for module, parts in found.items():
        for part in ("weight", "bias"):
            tensor = parts.get(f"base_layer.{part}")
            if tensor is not None and not base.has(module, part, tensor):
                raise AdapterRefused(
                    f"tensor {module}.base_layer.{part}: differs from the base model's; "
                    "an adapter of another base model, or with a changed one, is not supported"
                )


def _matched(found: Found, config: PeftConfig) -> MatchedAdapter:
    saved = {
        name: SavedMatrix(name, parts["weight"], parts.get("bias"))
        for name, parts in found.items()
        if "weight" in parts
    }
    pairs = {
        name: LoraPair(
            name,
            parts["lora_A.weight"] if "lora_A.weight" in parts else parts["lora_embedding_A"],
            parts["lora_B.weight"] if "lora_B.weight" in parts else parts["lora_embedding_B"],
            config.scaling(name),
            parts.get("lora_B.bias"),
            parts.get(MAGNITUDE),
        )
        for name, parts in found.items()
        if name not in saved
    }
    return MatchedAdapter(pairs, saved)
