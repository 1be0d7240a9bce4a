import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data_plane.models.build import layout_of, prepared
from data_plane.models.trace import trace


def tiny(model_type: str, **fields: object) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **fields)
    return prepared(AutoModelForCausalLM.from_config(config))


def llama(**fields: object) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
    return tiny("llama", **(sizes | {"num_attention_heads": 4, "num_key_value_heads": 2} | fields))


def test_siblings_are_found_by_what_they_are_called_with():
    found = trace(llama())
    names = [[name.removeprefix("model.layers.1.") for name in group] for group in found.groups[4:]]
    assert names == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]


def test_the_output_projection_takes_no_part():
    found = trace(llama(tie_word_embeddings=False))
    assert "lm_head" not in {name for group in found.groups for name in group}


def test_names_mean_nothing():
    model = llama()
    for layer in model.model.layers:
        # A sibling by name and size, but of another input: the trace must keep it apart.
        layer.self_attn.v_proj = _OnACopy(layer.self_attn.v_proj)
    groups = trace(model).groups
    assert groups[0] == ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj")
    assert groups[1] == ("model.layers.0.self_attn.v_proj.inner",)


class _OnACopy(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.clone())


def test_cache_shapes_are_those_that_attention_receives():
    shapes = [attention.shape for attention in trace(llama()).attentions]
    assert [(s.num_heads, s.k_head_dim, s.v_head_dim) for s in shapes] == [(2, 8, 8)] * 2


def test_a_projection_that_is_fused_already_is_one_slice():
    model = tiny(
        "phi3",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        pad_token_id=0,
    )
    module = layout_of(model, trace(model)).modules[0]
    assert [p.name for p in module.projections] == ["model.layers.0.self_attn.qkv_proj"]
    assert (module.in_features, module.out_features) == (32, 64)


def test_transposed_layers_of_gpt2_have_their_sizes_the_right_way_round():
    model = tiny("gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=40)
    layout = layout_of(model, trace(model))
    sizes = {name: (t.in_features, t.out_features) for name, t in layout.targets.items()}
    assert sizes["transformer.h.0.attn.c_attn"] == (32, 96)
    assert sizes["transformer.h.0.mlp.c_fc"] == (32, 128)


def test_the_model_is_as_it_was_afterwards():
    model = llama()
    trace(model)
    assert not any("paged" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
