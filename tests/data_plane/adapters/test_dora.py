import pytest
import torch

from data_plane.adapters.dora import column_scale
from data_plane.adapters.layout import AdapterLayout, FusedModule, Projection
from data_plane.adapters.matched import LoraPair
from data_plane.errors import AdapterRefused
from data_plane.models.weights import FusedWeights, ModelWeights, row_norms_squared
from kernels.cpu.linear import make_linear

INSIDE, OUTSIDE, RANK = 12, 7, 3
LAYOUT = AdapterLayout((FusedModule((Projection("q", 4), Projection("k", OUTSIDE)), INSIDE),))


def base_of(weight: torch.Tensor) -> ModelWeights:
    """A base model whose projection k has this weight; a sibling and a bias must not be taken for it."""
    weights = [torch.ones(4, INSIDE), weight]
    bias = torch.arange(4.0 + OUTSIDE)
    fused = FusedWeights(make_linear(torch.cat(weights), bias), bias, row_norms_squared(weights))
    return ModelWeights(LAYOUT, [fused], {}, torch.float32)


def test_the_scale_is_the_magnitude_by_the_norm_of_the_changed_weight():
    generator = torch.Generator().manual_seed(0)
    weight, a, b, magnitude = (
        torch.randn(shape, generator=generator)
        for shape in ((OUTSIDE, INSIDE), (RANK, INSIDE), (OUTSIDE, RANK), (OUTSIDE,))
    )
    found = column_scale(LoraPair("k", a, b, 0.7), magnitude, base_of(weight))
    norms = torch.linalg.norm(weight.double() + 0.7 * b.double() @ a.double(), dim=1)
    assert torch.allclose(found.double(), magnitude.double() / norms, rtol=1e-5)


def test_a_row_of_length_zero_is_refused_and_not_divided_by():
    pair = LoraPair("k", torch.ones(RANK, INSIDE), torch.zeros(OUTSIDE, RANK), 1.0)
    with pytest.raises(AdapterRefused, match=r"k\.lora_magnitude_vector: its quotient"):
        column_scale(pair, torch.ones(OUTSIDE), base_of(torch.zeros(OUTSIDE, INSIDE)))
