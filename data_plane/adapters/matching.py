"""Which tensor of an adapter's file belongs to which module; every one does, or it is refused.

Pure: names, kinds and shapes, config and layout in, every tensor's place out. A tensor that is not applied
and a module that gets none would both be silent no-ops, so neither is let through.
"""

import re
from collections.abc import Mapping

import torch

from data_plane.adapters.expected import ExpectedTensor, Parts, expected_tensors, ties
from data_plane.adapters.layout import AdapterLayout
from data_plane.adapters.matched import Matching, Part, Repeat
from data_plane.adapters.peft_config import PeftConfig
from data_plane.adapters.weights import StoredTensor
from data_plane.errors import AdapterRefused

PREFIX = "base_model.model."
# Some versions of PEFT keep DoRA's vector as the weight of a module.
MAGNITUDE = "lora_magnitude_vector"
KEY = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_[AB]\.(?:weight|bias)|lora_embedding_[AB]"
    rf"|{MAGNITUDE}(?:\.weight)?|base_layer\.(?:weight|bias)|weight|bias)"
)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Found = dict[str, dict[str, Part]]  # by module, then by part


def match_tensors(tensors: Mapping[str, StoredTensor], config: PeftConfig, layout: AdapterLayout) -> Matching:
    """Put every tensor in its place and check names, dtypes and shapes."""
    expected = expected_tensors(config, layout)
    found: Found = {}
    for key, tensor in tensors.items():
        module, part = _parse(key, expected, layout)
        parts = found.setdefault(module, {})
        if part in parts:
            raise AdapterRefused(f"tensor {key}: {module} has a second {part}")
        parts[part] = Part(tensor)
        _check(key, tensor, expected[module][part])
    repeats = _tie(found, expected, layout) if ties(config, layout) else ()
    _refuse_missing(found, expected)
    return Matching(found, {name: config.scaling(name) for name in found}, repeats)


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


def _check(key: str, tensor: StoredTensor, expected: ExpectedTensor) -> None:
    if tensor.shape != expected.shape:
        raise AdapterRefused(
            f"tensor {key}: shape {list(tensor.shape)}, expected {list(expected.shape)}"
            + _vocabulary_hint(key)
        )
    if tensor.dtype not in FLOATS:
        raise AdapterRefused(f"tensor {key}: dtype {tensor.dtype} is not a floating-point type")


def _vocabulary_hint(key: str) -> str:
    is_end = not re.search(r"\.lora_[AB]\.", key)
    return " (an adapter with a vocabulary of its own, lora_extra_vocab_size, is not supported)" * is_end


def _tie(found: Found, expected: Mapping[str, Parts], layout: AdapterLayout) -> tuple[Repeat, ...]:
    """Give the head the embedding's tensors; what it has of its own has to repeat them."""
    assert layout.embedding is not None, "tied ends exist"
    assert layout.head is not None, "tied ends exist"
    embedding, head = found.get(layout.embedding.name, {}), found.setdefault(layout.head.name, {})
    repeats = []
    for part, source, turned in (
        ("lora_A.weight", "lora_embedding_B", True),
        ("lora_B.weight", "lora_embedding_A", True),
        ("weight", "weight", False),
    ):
        if part not in expected[layout.head.name] or source not in embedding:
            continue
        tied = Part(embedding[source].stored, turned)
        if part in head:
            names = (f"{layout.head.name}.{part}", f"{layout.embedding.name}.{source}")
            repeats.append(Repeat(names[0], head[part], names[1], tied))
        head.setdefault(part, tied)
    return tuple(repeats)


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
