"""Architectures × adapter features against PEFT: logits within 1e-4 and the same greedy tokens.

Through the engine, with chunked prefill, beside a request without an adapter. A feature that is not
served must be refused by its name.
"""

import pytest

from data_plane.errors import AdapterRefused
from tests.data_plane.parity.architectures import ARCHITECTURES, Architecture
from tests.data_plane.parity.comparison import TOLERANCE, compare
from tests.data_plane.parity.features import ALL_LINEAR, FEATURES, Feature
from tests.data_plane.parity.matrix import FAILED, REFUSED, Matrix
from tests.data_plane.parity.served import Served

# PEFT warns of what merging or training would make of these adapters.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore::UserWarning:peft\..*"),
    pytest.mark.filterwarnings(r"ignore:.is_gradient_checkpointing:FutureWarning"),
]


def is_core(architecture: Architecture, feature: Feature) -> bool:
    """Every architecture once, and every feature once."""
    return feature is ALL_LINEAR or architecture is ARCHITECTURES[0]


CELLS = [
    pytest.param(a, f, id=f"{a.model_type}-{f.name}", marks=() if is_core(a, f) else pytest.mark.slow)
    for a in ARCHITECTURES
    for f in FEATURES
]
# One with an output projection of its own, one that shares its embedding's weights.
MIXED = [architecture for architecture in ARCHITECTURES if architecture.model_type in ("llama", "gpt2")]


@pytest.mark.parametrize(("served", "feature"), CELLS, indirect=["served"])
def test_an_adapter_computes_what_it_computes_in_peft(served: Served, feature: Feature, matrix: Matrix):
    cell = (served.architecture.model_type, feature.name)
    matrix.cells[cell] = FAILED
    (found,) = compare(served, feature)
    if found.refusal is not None:
        matrix.cells[cell] = REFUSED
        assert feature.refused_as, f"{feature.name} must be served: {found.refusal}"
        assert isinstance(found.refusal, AdapterRefused)
        assert feature.refused_as in str(found.refusal)
    else:
        matrix.cells[cell] = f"{found.error:.1e}"
        assert found.error < TOLERANCE


@pytest.mark.parametrize("served", MIXED, indirect=True, ids=lambda a: a.model_type)
def test_adapters_of_all_kinds_share_batches(served: Served):
    features = [feature for feature in FEATURES if feature.refused_as is None]
    found = compare(served, *features)
    assert [comparison.refusal for comparison in found] == [None] * len(features)
    assert max(comparison.error for comparison in found) < TOLERANCE
