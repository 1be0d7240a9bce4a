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


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("lora_dropout", "none", "must be a number from 0 to 1"),
        ("lora_dropout", 8, "must be a number from 0 to 1"),
        ("task_type", "DANCE", "must be null or one of SEQ_CLS"),
        ("task_type", ["CAUSAL_LM"], "must be null or one of SEQ_CLS"),
        ("rank_pattern", [], "must be an object"),
        ("alpha_pattern", 0, "must be an object"),
        ("trainable_token_indices", -0.0, "is not supported"),
    ],
)
def test_what_peft_itself_cannot_read_is_refused_even_where_it_computes_nothing(
    option: str, value: object, rule: str
):
    with pytest.raises(AdapterRefused, match=f"{option}.*{rule}"):
        parse_peft_config(json.dumps(VALID | {option: value}).encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_another_encoding_than_utf_8_is_refused(encoding: str):
    with pytest.raises(AdapterRefused, match="is not JSON"):
        parse_peft_config(json.dumps(VALID).encode(encoding))


def test_a_pattern_of_layers_that_finds_no_number_is_refused():
    options = {"layers_pattern": ["q_proj|"], "layers_to_transform": [0]}
    config = parse_peft_config(json.dumps(VALID | options).encode())
    with pytest.raises(
        AdapterRefused, match=r"finds no layer.s number in model\.layers\.0\.self_attn\.q_proj"
    ):
        config.targets("model.layers.0.self_attn.q_proj")
