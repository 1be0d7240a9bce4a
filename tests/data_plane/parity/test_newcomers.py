"""Architectures that are named nowhere in the worker: what follows the conventions needs no code."""

from pathlib import Path

import pytest

import data_plane
import kernels
from tests.data_plane.parity.architectures import NEWCOMERS, Architecture
from tests.data_plane.parity.comparison import TOLERANCE, compare
from tests.data_plane.parity.features import ALL_LINEAR
from tests.data_plane.parity.served import Served

# PEFT warns of what merging or training would make of these adapters.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore::UserWarning:peft\..*"),
    pytest.mark.filterwarnings(r"ignore:.is_gradient_checkpointing:FutureWarning"),
]


@pytest.mark.parametrize("served", NEWCOMERS, indirect=True, ids=lambda a: a.model_type)
def test_it_computes_what_it_computes_in_peft(served: Served):
    (found,) = compare(served, ALL_LINEAR)
    assert found.refusal is None
    assert found.error < TOLERANCE


@pytest.mark.parametrize("architecture", NEWCOMERS, ids=lambda a: a.model_type)
def test_no_source_file_names_it(architecture: Architecture):
    files = [file for package in (data_plane, kernels) for file in Path(package.__path__[0]).rglob("*.py")]
    assert len(files) > 50
    assert [file for file in files if architecture.model_type in file.read_text().lower()] == []
