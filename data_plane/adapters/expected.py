"""Which tensors an adapter of a given configuration has: the names PEFT writes, with their shapes.

Pure. What is not here is not applied, so the files may hold nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from data_plane.adapters.layout import AdapterLayout, End
from data_plane.adapters.peft_config import PeftConfig
from data_plane.errors import AdapterRefused

# PEFT ties the adapters of tied ends only where one of these is named.
TIED_NAMES = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    """One tensor of one module."""

    shape: tuple[int, ...]
    required: bool = True


Parts = dict[str, ExpectedTensor]  # by the end of the key, for example "lora_A.weight"


def expected_tensors(config: PeftConfig, layout: AdapterLayout) -> dict[str, Parts]:
    """The parts of every module that the adapter changes; refuse what cannot be changed so."""
    expected = {
        name: _linear(config, name, target.in_features, target.out_features)
        for name, target in layout.targets.items()
        if config.targets(name)
    }
    saved, targeted = _ends(config, layout)
    for end in saved:
        expected[end.name] = _saved(end, required=not _follows(config, layout, end, saved))
    for end in targeted:
        if end in saved:
            raise AdapterRefused(f"{end.name} is both in target_modules and in modules_to_save")
        expected[end.name] = dict(
            _low_rank_end(config, layout, end, required=not _follows(config, layout, end, targeted))
        )
    return expected


def ties(config: PeftConfig, layout: AdapterLayout) -> bool:
    """Whether the head's changes are the embedding's."""
    if not (config.ensure_weight_tying and layout.tied):
        return False
    named = [end for end in layout.ends if config.targets_end(end) or config.saves(end)]
    return any(name.rpartition(".")[2] in TIED_NAMES for name in named)


def _ends(config: PeftConfig, layout: AdapterLayout) -> tuple[list[End], list[End]]:
    """Ends that are replaced, and ends with LoRA; tied ends come together."""
    ends = list(layout.ends.values())
    for module in config.modules_to_save:
        if not any(end.name.endswith(module) for end in ends):
            names = " and ".join(layout.ends) or "none"
            raise AdapterRefused(
                f"modules_to_save {module!r} is not supported: only embedding and output head are ({names})"
            )
    saved = [end for end in ends if config.saves(end.name)]
    targeted = [end for end in ends if config.targets_end(end.name)]
    if ties(config, layout):
        # PEFT looks at modules_to_save first and ties target_modules only without them.
        return (ends, targeted) if saved else ([], ends)
    return saved, targeted


def _follows(config: PeftConfig, layout: AdapterLayout, end: End, ends: list[End]) -> bool:
    """Whether the end is a head that repeats the embedding's tensors, so that files may leave them out."""
    return ties(config, layout) and end is layout.head and layout.embedding in ends


def _linear(config: PeftConfig, name: str, in_features: int, out_features: int) -> Parts:
    rank = config.rank(name)
    parts = {
        "lora_A.weight": ExpectedTensor((rank, in_features)),
        "lora_B.weight": ExpectedTensor((out_features, rank)),
    }
    if config.lora_bias:
        parts["lora_B.bias"] = ExpectedTensor((out_features,))
    if config.use_dora:
        parts["lora_magnitude_vector"] = ExpectedTensor((out_features,))
    return parts


def _low_rank_end(
    config: PeftConfig, layout: AdapterLayout, end: End, *, required: bool
) -> Iterator[tuple[str, ExpectedTensor]]:
    parts = _linear(config, end.name, end.in_features, end.out_features)
    if end is layout.embedding:
        if config.lora_bias:
            raise AdapterRefused(f"{end.name}: lora_bias is not supported on an embedding")
        parts["lora_embedding_A"] = parts.pop("lora_A.weight")
        parts["lora_embedding_B"] = parts.pop("lora_B.weight")
    for part, tensor in parts.items():
        # Tied ends share A and B alone; what else the head has is its own.
        shared = part in ("lora_A.weight", "lora_B.weight")
        yield part, ExpectedTensor(tensor.shape, required or not shared)
    # PEFT adds the base model's own matrix to the files.
    yield "base_layer.weight", ExpectedTensor(end.weight_shape, required=False)
    if end.has_bias:
        yield "base_layer.bias", ExpectedTensor((end.out_features,), required=False)


def _saved(end: End, *, required: bool) -> Parts:
    parts = {"weight": ExpectedTensor(end.weight_shape, required)}
    if end.has_bias:
        parts["bias"] = ExpectedTensor((end.out_features,), required)
    return parts
