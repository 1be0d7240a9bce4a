import torch

from data_plane.adapters.layout import AdapterLayout, End, FusedModule, Projection
from data_plane.models.weights import EndWeights, FusedWeights, ModelWeights, row_norms_squared
from kernels.cpu.linear import make_linear

GENERATOR = torch.Generator().manual_seed(0)
Q, K, EMBEDDING, HEAD = (
    torch.randn(*shape, generator=GENERATOR) for shape in ((4, 6), (3, 6), (9, 6), (9, 6))
)
BIAS, HEAD_BIAS = torch.randn(7, generator=GENERATOR), torch.randn(9, generator=GENERATOR)


def make(dtype: torch.dtype = torch.float32) -> ModelWeights:
    layout = AdapterLayout(
        (FusedModule((Projection("q", 4), Projection("k", 3)), 6),),
        embedding=End("embed", 9, 6, (9, 6)),
        head=End("head", 6, 9, (9, 6), has_bias=True),
    )
    linear = make_linear(torch.cat([Q, K]).to(dtype), BIAS.to(dtype))
    fused = FusedWeights(linear, BIAS.to(dtype), row_norms_squared([Q, K]))
    ends = {
        "embed": EndWeights(EMBEDDING.to(dtype), None, is_embedding=True),
        "head": EndWeights(HEAD.to(dtype), HEAD_BIAS.to(dtype), is_embedding=False),
    }
    return ModelWeights(layout, [fused], ends, dtype)


def test_products_are_those_of_one_projections_rows_without_its_bias():
    for name, weight in (("q", Q), ("k", K), ("head", HEAD), ("embed", EMBEDDING.t())):
        a = torch.randn(2, weight.shape[1], generator=GENERATOR)
        assert torch.allclose(make().product(name, a), a @ weight.t(), atol=1e-5), name
        assert torch.allclose(make().norms_squared(name), weight.square().sum(1)), name


def test_biases_are_those_of_one_projection():
    weights = make()
    assert torch.equal(weights.bias("k"), BIAS[4:])
    assert torch.equal(weights.bias("head"), HEAD_BIAS)
    assert weights.bias("embed") is None


def test_a_matrix_is_the_base_models_when_it_is_so_in_the_bases_dtype():
    weights = make(torch.bfloat16)
    assert weights.has("head", "weight", HEAD)
    assert weights.has("head", "bias", HEAD_BIAS)
    assert not weights.has("head", "weight", EMBEDDING)
    assert not weights.has("embed", "bias", HEAD_BIAS)
