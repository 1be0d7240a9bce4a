"""The matching rules, with PEFT itself as the oracle."""

import json

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from data_plane.adapters.peft_json import parse_peft_config

NAMES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 2, 11)
    for module in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "mlp.gate_proj",
        "mlp.q_proj",
        "mlp.experts.1.q_proj",
    )
] + ["q_proj", "transformer.h.3.attn.q_proj", "h.1.k_proj"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.gate_proj"]},
        {"target_modules": r".*layers\.(0|2)\..*_proj"},
        {"target_modules": "q_proj"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["mlp.q_proj"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.1\..*"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0},
        {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1, 3], "layers_pattern": "h"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["layers", "h"]},
    ],
)
def test_targets_are_those_of_peft(options: dict):
    theirs = LoraConfig(**options)
    ours = parse_peft_config(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8, **options}).encode())
    for name in NAMES:
        assert ours.targets(name) == bool(check_target_module_exists(theirs, name)), name


@pytest.mark.parametrize(
    "patterns",
    [
        {"q_proj": 4, "layers.1.self_attn.q_proj": 2},
        {"layers.1.self_attn.q_proj": 2, "q_proj": 4},
        {r".*\.mlp\..*": 16, "model.layers.0.self_attn.k_proj": 1},
        {"proj": 3},
    ],
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_scalings_are_those_of_peft(patterns: dict[str, int], use_rslora: bool):
    raw = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 5,
        "target_modules": ["q_proj"],
        "rank_pattern": patterns,
        "alpha_pattern": {key: 3 * value for key, value in patterns.items()},
        "use_rslora": use_rslora,
    }
    ours = parse_peft_config(json.dumps(raw).encode())
    for name in NAMES:
        rank = patterns.get(get_pattern_key(patterns.keys(), name), 8)
        alpha = raw["alpha_pattern"].get(get_pattern_key(patterns.keys(), name), 5)
        assert ours.rank(name) == rank
        assert ours.scaling(name) == alpha / (rank**0.5 if use_rslora else rank)


def test_every_option_that_peft_writes_today_is_known():
    config = LoraConfig(r=8, target_modules=["q_proj"]).to_dict()
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    assert parse_peft_config(json.dumps(config | {"peft_type": "LORA"}).encode()).r == 8
