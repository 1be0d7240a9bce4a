"""Rope scaled for long contexts, with prompts longer than the model was first trained for."""

from pathlib import Path

import pytest

from data_plane.errors import ModelRefused
from tests.data_plane.parity.architectures import SIZES, Architecture
from tests.data_plane.parity.comparison import TOLERANCE, compare
from tests.data_plane.parity.features import ALL_LINEAR
from tests.data_plane.parity.served import Served

# PEFT warns of what merging or training would make of these adapters.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore::UserWarning:peft\..*"),
    pytest.mark.filterwarnings(r"ignore:.is_gradient_checkpointing:FutureWarning"),
]

ORIGINAL = 8  # tokens; every prompt is longer
LONGROPE = Architecture(
    "phi3",
    SIZES
    | {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 8,
            "long_factor": [3.0] * 8,
        },
        "original_max_position_embeddings": 64,
    },
)


def scaled(rope_type: str, **options: object) -> Architecture:
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0, **options}
    return Architecture("llama", SIZES | {"rope_parameters": rope})


SCALED = [
    scaled("linear"),
    scaled("dynamic"),
    scaled("yarn", original_max_position_embeddings=ORIGINAL),
    scaled(
        "llama3",
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=ORIGINAL,
    ),
]


@pytest.mark.parametrize(
    "served", SCALED, indirect=True, ids=lambda a: a.options["rope_parameters"]["rope_type"]
)
def test_scaled_rope_computes_what_it_computes_in_peft(served: Served):
    (found,) = compare(served, ALL_LINEAR)
    assert found.refusal is None
    assert found.error < TOLERANCE


def test_a_rope_that_the_longest_sequence_of_a_batch_decides_is_refused(tmp_path: Path):
    with pytest.raises(ModelRefused, match=r"up to 128 tokens, .* first in model\.rotary_emb"):
        Served(LONGROPE, tmp_path)


def test_it_is_served_while_no_sequence_is_long_enough_to_decide(tmp_path: Path):
    served = Served(LONGROPE, tmp_path, max_model_len=64)
    (found,) = compare(served, ALL_LINEAR)
    assert found.refusal is None
    assert found.error < TOLERANCE
