"""Adapters that change the embedding or the output head: what their files hold, and how it may be wrong."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_plane.adapters.packing import PackedLora
from data_plane.errors import AdapterRefused
from kernels.lora.side import LowRank, Replacement
from tests.data_plane.world import World, source_of
from tests.tiny import make_adapter

WEIGHTS = "adapter_model.safetensors"
HEAD, EMBEDDING = "base_model.model.lm_head", "base_model.model.model.embed_tokens"
VOCABULARY, HIDDEN = 257, 64
BOTH = ("embed_tokens", "lm_head")
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")

Make = Callable[..., Path]


@pytest.fixture
def make(world: World, tmp_path: Path) -> Make:
    def make_it(**options: Any) -> Path:
        # PEFT changes lists that it is given.
        return make_adapter(tmp_path / "adapter", world.base, seed=4, rank=4, **deepcopy(options))

    return make_it


@pytest.fixture
def read(world: World, tmp_path: Path) -> Callable[[Path], PackedLora]:
    reader = replace(world.runtime.reader, roots=(tmp_path,))
    return lambda directory: reader.read(source_of(directory))


def change(adapter: Path, **tensors: torch.Tensor | None) -> None:
    """Set or remove tensors; `__` stands for a dot."""
    held = load_file(adapter / WEIGHTS)
    for name, tensor in tensors.items():
        key = name.replace("__", ".").replace("HEAD", HEAD).replace("EMBEDDING", EMBEDDING)
        if tensor is None:
            del held[key]
        else:
            held[key] = tensor
    save_file(held, adapter / WEIGHTS)


def test_lora_on_both_ends_is_packed_beside_the_rows(make: Make, read):
    adapter = make(target_modules=BOTH)
    side = read(adapter).side
    tensors = load_file(adapter / WEIGHTS)
    assert isinstance(side.embedding, LowRank)
    assert isinstance(side.head, LowRank)
    assert torch.equal(side.embedding.a_t, tensors[f"{EMBEDDING}.lora_embedding_A"].t())
    assert torch.equal(side.embedding.b, 2.0 * tensors[f"{EMBEDDING}.lora_embedding_B"].t())
    assert torch.equal(side.head.a_t, tensors[f"{HEAD}.lora_A.weight"].t())
    assert side.affines == (None,) * len(side.affines)


def test_the_base_models_own_matrices_are_accepted_and_not_kept(make: Make, read):
    adapter = make(target_modules=("lm_head",))
    assert f"{HEAD}.base_layer.weight" in load_file(adapter / WEIGHTS)
    assert read(adapter).side.num_bytes == 4 * 4 * (VOCABULARY + HIDDEN)
    change(adapter, HEAD__base_layer__weight=None)
    assert read(adapter).side.num_bytes == 4 * 4 * (VOCABULARY + HIDDEN)


def test_saved_matrices_are_kept_whole(make: Make, read):
    adapter = make(modules_to_save=list(BOTH))
    saved = torch.randn(VOCABULARY, HIDDEN)
    change(adapter, HEAD__weight=saved)
    side = read(adapter).side
    assert isinstance(side.head, Replacement)
    assert torch.equal(side.head.weight, saved)
    assert side.num_bytes == 2 * 4 * VOCABULARY * HIDDEN


def test_all_linear_means_neither_end(make: Make, read):
    adapter = make(target_modules=(*ATTENTION, *MLP))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": "all-linear"}))
    assert read(adapter).side is None


@pytest.mark.parametrize("options", [{"target_modules": BOTH}, {"modules_to_save": list(BOTH)}])
def test_a_tied_head_may_be_left_out_and_is_the_embeddings(make: Make, read, options: dict):
    adapter = make(ensure_weight_tying=True, **options)
    with_head = read(adapter)
    keys = [key for key in load_file(adapter / WEIGHTS) if key.startswith(HEAD) and "base_layer" not in key]
    change(adapter, **{key.replace(".", "__"): None for key in keys})
    assert keys
    for name in ("a_t", "b", "weight"):
        found, expected = (getattr(packed.side.head, name, None) for packed in (read(adapter), with_head))
        assert (found is None and expected is None) or torch.equal(found, expected)


def test_a_vector_of_dora_may_be_named_as_a_modules_weight(make: Make, read):
    adapter = make(target_modules=("lm_head",), use_dora=True)
    expected = read(adapter).side.head.affine.scale
    vector = load_file(adapter / WEIGHTS)[f"{HEAD}.lora_magnitude_vector"]
    change(adapter, HEAD__lora_magnitude_vector=None, HEAD__lora_magnitude_vector__weight=vector)
    assert torch.equal(read(adapter).side.head.affine.scale, expected)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor | None], str]] = {
    "another base": (
        {"target_modules": BOTH},
        {"EMBEDDING__base_layer__weight": torch.ones(VOCABULARY, HIDDEN)},
        "tensor model.embed_tokens.base_layer.weight: differs from the base model's",
    ),
    "more tokens": (
        {"modules_to_save": ["lm_head"]},
        {"HEAD__weight": torch.ones(VOCABULARY + 1, HIDDEN)},
        r"lm_head.weight: shape \[258, 64\], expected \[257, 64\] .*lora_extra_vocab_size, is not supported",
    ),
    "a bias that the head does not have": (
        {"modules_to_save": ["lm_head"]},
        {"HEAD__bias": torch.ones(VOCABULARY)},
        "tensor base_model.model.lm_head.bias: only weight are expected",
    ),
    "a saved matrix that is not named": (
        {},
        {"HEAD__weight": torch.ones(VOCABULARY, HIDDEN)},
        "lm_head is not among target_modules or modules_to_save",
    ),
    "a saved matrix of a projection": (
        {},
        {"base_model__model__model__layers__0__self_attn__q_proj__weight": torch.ones(HIDDEN, HIDDEN)},
        r"q_proj.weight: only lora_A.weight and lora_B.weight are expected",
    ),
    "half of a pair": (
        {"target_modules": BOTH},
        {"EMBEDDING__lora_embedding_A": None},
        "model.embed_tokens.lora_embedding_A is missing, its partner is there",
    ),
    "names of a linear layer": (
        {"target_modules": ("embed_tokens",)},
        {"EMBEDDING__lora_A__weight": torch.ones(4, VOCABULARY)},
        "embed_tokens.lora_A.weight: only lora_embedding_A and lora_embedding_B",
    ),
    "tied in name alone": (
        {"target_modules": BOTH, "ensure_weight_tying": True},
        {"HEAD__lora_A__weight": torch.ones(4, HIDDEN)},
        "tensor lm_head.lora_A.weight differs from model.embed_tokens.lora_embedding_B: ensure_weight_tying",
    ),
    "saved and tied in name alone": (
        {"modules_to_save": list(BOTH), "ensure_weight_tying": True},
        {"HEAD__weight": torch.ones(VOCABULARY, HIDDEN)},
        "tensor lm_head.weight differs from model.embed_tokens.weight: ensure_weight_tying",
    ),
    "not finite": (
        {"modules_to_save": ["lm_head"]},
        {"HEAD__weight": torch.full((VOCABULARY, HIDDEN), torch.inf)},
        "tensor lm_head.weight: has values that",
    ),
    "DoRA that divides by nothing": (
        {"target_modules": ("lm_head",), "use_dora": True},
        {"HEAD__lora_magnitude_vector": torch.full((VOCABULARY,), torch.nan)},
        "tensor lm_head.lora_magnitude_vector: its quotient by the norm of the weight is not finite",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_end_is_refused_and_the_message_names_what_and_why(make: Make, read, case: str):
    options, tensors, message = REFUSED[case]
    adapter = make(**options)
    change(adapter, **tensors)
    with pytest.raises(AdapterRefused, match=message):
        read(adapter)


def test_an_end_both_saved_and_with_lora_is_refused(make: Make, read):
    adapter = make(modules_to_save=["lm_head"])
    text = (adapter / "adapter_config.json").read_text()
    (adapter / "adapter_config.json").write_text(text.replace('"v_proj"', '"v_proj", "lm_head"'))
    with pytest.raises(AdapterRefused, match="lm_head is both in target_modules and in modules_to_save"):
        read(adapter)


def test_a_rank_of_an_end_above_the_largest_is_refused(make: Make, read):
    with pytest.raises(AdapterRefused, match="lm_head: rank 17 is above max_lora_rank 16"):
        read(make(target_modules=("lm_head", "q_proj"), rank_pattern={"lm_head": 17}))


def test_more_bytes_beside_the_pool_than_a_slot_may_have_are_refused(
    make: Make, world: World, tmp_path: Path
):
    num_bytes = 4 * VOCABULARY * HIDDEN
    packer = replace(world.runtime.reader.packer, max_side_bytes=num_bytes - 1)
    reader = replace(world.runtime.reader, roots=(tmp_path,), packer=packer)
    source = source_of(make(modules_to_save=["lm_head"]))
    with pytest.raises(AdapterRefused, match=f"take {num_bytes} bytes, above the {num_bytes - 1} that"):
        reader.read(source)
    packer = replace(packer, max_side_bytes=num_bytes)
    assert replace(reader, packer=packer).read(source).side_bytes == num_bytes
