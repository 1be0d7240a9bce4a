"""Options that are valid alone, and not where they are used."""

import json

import pytest

from data_plane.adapters.peft_json import parse_peft_config
from data_plane.adapters.reader import _shards
from data_plane.errors import AdapterRefused

VALID = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "layers_to_transform": [0],
}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rank_pattern", {"(?i)q_proj": 4}),  # flags may only begin an expression
        ("alpha_pattern", {"(?i)q_proj": 4}),
        ("layers_pattern", ["(?i)layers"]),
        ("layers_pattern", ["(?P<layer>layers)"]),  # the name of our own group
        ("target_modules", "(?<!x*)q_proj"),  # parsed, but not compiled
    ],
)
def test_a_pattern_that_cannot_run_in_its_place_is_refused(option: str, value: object):
    with pytest.raises(AdapterRefused, match="is not a regular expression"):
        parse_peft_config(json.dumps(VALID | {option: value}).encode())


def test_flags_may_begin_an_expression_that_is_used_whole():
    config = parse_peft_config(json.dumps(VALID | {"target_modules": "(?i).*Q_PROJ"}).encode())
    assert config.targets("model.layers.0.self_attn.q_proj")


def test_a_pattern_of_layers_without_layers_is_refused_as_peft_does():
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    with pytest.raises(AdapterRefused, match=r"layers_pattern .* needs layers_to_transform"):
        parse_peft_config(json.dumps(config | {"layers_pattern": ["layers"]}).encode())


@pytest.mark.parametrize("name", ["a\0.safetensors", "\ud800.safetensors", "a\n.safetensors"])
def test_an_index_that_names_what_no_file_can_be_called_is_refused(name: str):
    with pytest.raises(AdapterRefused, match="is not the name of a safetensors file"):
        _shards(json.dumps({"weight_map": {"a": name}}).encode())
