import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data_plane.models.build import fuse_projections, layout_of, prepared
from data_plane.models.packed_head import pack_head
from data_plane.models.pointwise import FusedGate, FusedNorm, fuse_pointwise
from data_plane.models.step import StepState
from data_plane.models.trace import trace
from tests.kernels.cpu.implementations import kernels_at

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}


def tiny(kind: str, dtype: torch.dtype, **fields: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES | HEADS | fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train(False).requires_grad_(False)


def fused(model: PreTrainedModel) -> PreTrainedModel:
    ours = prepared(copy.deepcopy(model))
    found = trace(ours)
    layout = layout_of(ours, found)
    fuse_projections(ours, found, StepState(), None)
    fuse_pointwise(ours, layout, kernels_at("plain"))
    return ours


def count(model: PreTrainedModel, kind: type) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "norms", "gates"),
    [
        ("llama", 5, 2),
        ("qwen3", 9, 2),  # queries and keys have norms too
        ("gemma2", 9, 0),  # norms weigh by 1 + w; the gate is no silu
        ("olmo2", 9, 2),
    ],
)
def test_norms_and_gates_are_found_by_their_numbers(kind: str, norms: int, gates: int, dtype: torch.dtype):
    ours = fused(tiny(kind, dtype))
    assert (count(ours, FusedNorm), count(ours, FusedGate)) == (norms, gates)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_replaced_block_gives_the_definitions_numbers(kind: str):
    model = tiny(kind, torch.float32)
    ours = fused(model)
    x = torch.randn(1, 7, 32)
    for name, module in ours.named_modules():
        if isinstance(module, FusedNorm | FusedGate):
            x = torch.randn(1, 7, module.weight.shape[0]) if isinstance(module, FusedNorm) else x
            assert torch.allclose(module(x), model.get_submodule(name)(x), rtol=1e-4, atol=1e-5)
            x = torch.randn(1, 7, 32)


def test_a_definition_without_such_modules_stays_as_it_is():
    model = tiny("gpt2", torch.float32, n_embd=32, n_layer=1, n_head=4)
    ours = fused(model)
    assert (count(ours, FusedNorm), count(ours, FusedGate)) == (0, 0)


def test_the_packed_head_gives_the_definitions_logits_and_keeps_its_weight():
    model = tiny("llama", torch.float32, tie_word_embeddings=True)
    ours = copy.deepcopy(model)
    num_bytes = pack_head(ours, layout_of(ours, trace(prepared(ours))).head)
    x = torch.randn(1, 3, 32)
    assert num_bytes == 60 * 32 * 4
    assert torch.allclose(ours.lm_head(x), model.lm_head(x), rtol=1e-4, atol=1e-5)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
