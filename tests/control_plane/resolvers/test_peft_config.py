"""An adapter's config: nothing is taken from it that the registry could not keep or show."""

import json

import pytest

from control_plane.errors import Refused
from control_plane.resolvers.peft_config import MAX_CHARACTERS, MAX_RANK, parse_config

VALID = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("r", MAX_RANK + 1),
        ("r", 10**30),
        ("rank_pattern", {"q_proj": 2**32}),
        ("target_modules", ["\ud800"]),
        ("target_modules", "\udfff.*"),
        ("target_modules", ["x" * MAX_CHARACTERS, "y"]),
        ("base_model_name_or_path", "\ud800"),
    ],
)
def test_a_value_beyond_the_protocol_is_refused_by_its_option(option: str, value: object) -> None:
    with pytest.raises(Refused, match=f"adapter_config.json: {option}"):
        parse_config("adapter_config.json", json.dumps(VALID | {option: value}).encode())


def test_the_largest_rank_is_kept() -> None:
    assert parse_config("x", json.dumps(VALID | {"r": MAX_RANK}).encode()).rank == MAX_RANK
