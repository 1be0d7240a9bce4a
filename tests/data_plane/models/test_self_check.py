import copy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_plane.errors import ModelRefused
from data_plane.models import self_check as module
from data_plane.models.self_check import self_check
from data_plane.models.tiny_config import tiny_config
from tests.tiny import make_tokenizer

ROOT = Path(__file__).parents[3]
LENGTH = 2048
# Grouped heads, sliding windows, soft-caps, sinks, fused projections, Conv1D, experts, shared layers.
SERVED = {
    "llama": {},
    "mistral": {"sliding_window": 512},
    "qwen3": {},
    "gemma2": {"sliding_window": 512},
    "gemma3_text": {"sliding_window": 512},
    "phi3": {"sliding_window": 512},
    "granite": {},
    "olmo2": {},
    "gpt2": {"n_positions": LENGTH},
    "gpt_oss": {},
    "nemotron": {"num_key_value_heads": 8},
}
# What is at fault is named by its place in the definition, and by its class.
REFUSED = {
    "falcon": ({"alibi": True}, r"self_attention \(FalconAttention\); nothing calls .* AttentionInterface"),
    "bloom": ({}, r"self_attention \(BloomAttention\); nothing calls .* AttentionInterface"),
    "mamba": ({}, r"layers\.0\.mixer \(MambaMixer\); nothing calls .* AttentionInterface"),
    "minimax": ({}, r"self_attn \(MiniMaxLightningAttention\)"),
    "qwen3_next": ({}, r"layers\.0\.linear_attn \(Qwen3NextGatedDeltaNet\)"),
    "lfm2": (
        {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
        r"layers\.0\.conv \(Lfm2ShortConv\)",
    ),
    "llama4_text": ({"attention_chunk_size": 512}, r"self_attn \(Llama4TextAttention\)"),
}


@pytest.mark.parametrize("model_type", SERVED)
def test_architecture_is_served(model_type: str):
    self_check(AutoConfig.for_model(model_type, **SERVED[model_type]), LENGTH)


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_passes_our_interface_by_is_refused_and_named(model_type: str):
    options, place = REFUSED[model_type]
    with pytest.raises(
        ModelRefused, match=rf"^{model_type}: .* differ from transformers' by .*, first in .*{place}"
    ):
        self_check(AutoConfig.for_model(model_type, **options), LENGTH)


def test_a_window_that_no_sequence_reaches_stands_in_nobodys_way():
    self_check(AutoConfig.for_model("llama4_text", attention_chunk_size=512), 512)


def test_a_configuration_that_transformers_cannot_compute_is_refused_with_its_words():
    with pytest.raises(
        ModelRefused, match=r"nemotron: transformers cannot compute .*: TypeError: unsupported"
    ):
        self_check(AutoConfig.for_model("nemotron", num_key_value_heads=None), LENGTH)


@pytest.mark.processes
def test_a_worker_of_an_architecture_that_cannot_be_served_ends_with_the_reason(tmp_path: Path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", alibi=True, **sizes)).save_pretrained(
        tmp_path
    )
    make_tokenizer().save_pretrained(tmp_path)
    worker = subprocess.run(
        [sys.executable, "-m", "data_plane", "--model", str(tmp_path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert worker.returncode == 2
    message = worker.stderr.strip().splitlines()[-1]
    assert message.startswith("worker does not start: falcon: flattened and paged")
    assert "FalconAttention" in message


def test_numbers_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch):
    expected = module.apart
    monkeypatch.setattr(module, "apart", lambda *trial: expected(*trial) * 1.01)
    with pytest.raises(ModelRefused, match=r"llama: .* its logits differ from transformers' by 9\.9e-03"):
        self_check(AutoConfig.for_model("llama"), LENGTH)


def test_the_callers_random_numbers_and_threads_go_on_undisturbed():
    torch.manual_seed(5)
    expected, num_threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    self_check(AutoConfig.for_model("llama"), LENGTH)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == num_threads


def test_a_model_of_eight_billion_is_tried_within_a_second():
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
    config = AutoConfig.for_model("llama", num_key_value_heads=8, num_hidden_layers=32, **sizes)
    self_check(config, LENGTH)  # transformers imports the definition once
    began = time.thread_time()
    self_check(config, LENGTH)
    assert time.thread_time() - began < 1.0


def test_a_tiny_configuration_keeps_every_kind_of_layer_and_the_heads_shape():
    config = AutoConfig.for_model("gemma3_text", num_attention_heads=8, num_key_value_heads=4, head_dim=32)
    before = copy.deepcopy(config)
    tiny = tiny_config(config, LENGTH)
    assert set(tiny.layer_types) == set(config.layer_types)
    assert tiny.num_hidden_layers == len(tiny.layer_types) == 2
    assert (tiny.num_attention_heads, tiny.num_key_value_heads, tiny.head_dim) == (4, 2, 32)
    assert tiny.rope_parameters == config.rope_parameters
    assert config == before


def test_only_windows_that_act_within_the_longest_sequence_shrink():
    config = AutoConfig.for_model("mistral", sliding_window=1024)
    assert tiny_config(config, 1024).sliding_window == 1024
    assert tiny_config(config, 1025).sliding_window == 5
