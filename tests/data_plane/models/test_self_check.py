import pytest
import torch
from transformers import AutoConfig

from data_plane.errors import ModelRefused
from data_plane.models import self_check as module
from data_plane.models.self_check import self_check
from data_plane.models.tiny_config import tiny_config

# Grouped heads, sliding windows, soft-caps, sinks, fused projections, Conv1D, experts.
SERVED = ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "granite", "olmo2", "gpt2", "gpt_oss"]


@pytest.mark.parametrize("model_type", SERVED)
def test_architecture_is_served(model_type: str):
    self_check(AutoConfig.for_model(model_type))


@pytest.mark.parametrize("model_type", ["falcon", "bloom"])
def test_attention_past_the_interface_is_refused_at_start(model_type: str):
    with pytest.raises(ModelRefused, match="does not go through AttentionInterface"):
        self_check(AutoConfig.for_model(model_type))


def test_a_model_without_attention_is_refused_with_the_reason():
    with pytest.raises(ModelRefused, match="mamba: the self-check failed"):
        self_check(AutoConfig.for_model("mamba"))


def test_numbers_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch):
    expected = module._apart
    monkeypatch.setattr(module, "_apart", lambda model: expected(model) * 1.01)
    with pytest.raises(ModelRefused, match=r"llama: .* its logits differ from transformers' by 9\.9e-03"):
        self_check(AutoConfig.for_model("llama"))


def test_the_callers_random_numbers_go_on_undisturbed():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    self_check(AutoConfig.for_model("llama"))
    assert torch.equal(torch.rand(1), expected)


def test_a_tiny_configuration_keeps_every_kind_of_layer_and_the_heads_shape():
    config = AutoConfig.for_model("gemma3_text", num_attention_heads=8, num_key_value_heads=2, head_dim=32)
    tiny = tiny_config(config)
    assert set(tiny.layer_types) == set(config.layer_types)
    assert tiny.num_hidden_layers == len(tiny.layer_types) == 2
    assert (tiny.num_attention_heads, tiny.num_key_value_heads, tiny.head_dim) == (8, 2, 32)
    assert config.num_hidden_layers == 26
