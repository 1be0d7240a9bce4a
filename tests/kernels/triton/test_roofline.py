from pathlib import Path

import pytest

from tests.kernels.triton.plot import line_plot
from tests.kernels.triton.roofline import (
    LLAMA_8B,
    Projection,
    Traffic,
    base,
    expand,
    lookup,
    own_head,
    ratio,
    shrink,
    tables,
)

DOCUMENT = Path("docs/kernels.md")


def test_the_limits_are_those_of_the_facts():
    # Measured apart: rank 16 on Llama-3-8B.
    assert ratio(LLAMA_8B, Traffic(8, 8, 16)) == pytest.approx(1.05, abs=0.01)
    assert ratio(LLAMA_8B, Traffic(64, 64, 16)) == pytest.approx(1.41, abs=0.02)


def test_a_launch_moves_its_weights_inputs_and_outputs_once():
    projection, traffic = Projection("o", 100, (10, 20)), Traffic(4, 2, 8)
    assert base(projection, traffic).num_bytes == 2 * (100 * 30 + 4 * 100 + 4 * 30)
    assert shrink(projection, traffic, split_k=2).num_bytes == 2 * (4 * 100 + 2 * 16 * 100) + 4 * 2 * 4 * 16
    assert expand(projection, traffic, split_k=2).num_bytes == 4 * 2 * 4 * 16 + 2 * (2 * 8 * 30 + 2 * 4 * 30)
    assert (shrink(projection, traffic).flops, expand(projection, traffic).flops) == (
        2 * 4 * 16 * 100,
        2 * 4 * 8 * 30,
    )
    assert lookup(30, traffic).num_bytes == 2 * (4 * 8 + 2 * 8 * 30 + 2 * 4 * 30)
    assert own_head(projection, traffic).num_bytes == 2 * (2 * 30 * 100 + 4 * 100 + 4 * 30)


@pytest.mark.parametrize("place", range(5))
def test_the_document_shows_the_tables_as_they_are_computed(place: int):
    assert tables()[place] in DOCUMENT.read_text()


def test_a_plot_has_a_line_a_series_and_escapes_its_names():
    svg = line_plot("a < b", ["1", "2"], {"measured": [1.0, 2.0], "limit": [1.0, 1.5]})
    assert svg.count("<polyline") == 2
    assert "a &lt; b" in svg
