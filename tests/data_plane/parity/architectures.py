"""The architectures of the matrix: tiny configurations that keep what is peculiar to each.

Every window is shorter than the prompts, every cap and multiplier far enough from one to show.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tiny import EOS, make_tokenizer

WINDOW = 6
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = HEADS | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
WIDE_HEADS = SIZES | {"head_dim": 24}  # the heads together are wider than the layer
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model type of transformers, its tiny configuration and the names that adapters use."""

    model_type: str
    options: Mapping[str, Any]
    attention: tuple[str, ...] = ("q_proj", "v_proj")
    mlp: str = "down_proj"
    embedding: str = "embed_tokens"
    lora: Mapping[str, Any] = field(default_factory=dict)  # what every adapter of it must say

    def save(self, directory: Path) -> Path:
        """A random model in fp32, and a tokenizer, under `directory`."""
        tokenizer = make_tokenizer()
        config = AutoConfig.for_model(
            self.model_type,
            **{"vocab_size": len(tokenizer), "max_position_embeddings": 128, **self.options},
            bos_token_id=None,
            pad_token_id=None,
            eos_token_id=tokenizer.convert_tokens_to_ids(EOS),
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomize(model)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory


def randomize(model: PreTrainedModel) -> None:
    """Random weights, biases and norms: a fresh model's biases are zero and its norms one, or the reverse."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)


ARCHITECTURES = (
    Architecture("llama", SIZES),
    Architecture("mistral", SIZES | {"sliding_window": WINDOW}),
    Architecture("qwen2", SIZES),
    Architecture("qwen3", WIDE_HEADS),
    Architecture(
        "gemma2",
        WIDE_HEADS
        | ALTERNATING
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 20},
    ),
    Architecture("gemma3_text", WIDE_HEADS | ALTERNATING | {"query_pre_attn_scalar": 20}),
    Architecture(
        "phi3",
        SIZES | {"sliding_window": WINDOW, "original_max_position_embeddings": 128},
        attention=("qkv_proj", "o_proj"),
    ),
    Architecture(
        "granite",
        SIZES
        | {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
    ),
    Architecture("olmo2", SIZES),
    Architecture(
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
        attention=("c_attn", "attn.c_proj"),
        mlp="mlp.c_proj",
        embedding="wte",
        lora={"fan_in_fan_out": True},
    ),
)
# Named nowhere in the worker and in no test but these: what follows the conventions needs no code.
NEWCOMERS = (
    Architecture("smollm3", SIZES | {"no_rope_layers": [1, 0]}),
    Architecture("stablelm", SIZES | {"use_qkv_bias": True, "qk_layernorm": True}),
    Architecture("starcoder2", SIZES | {"sliding_window": WINDOW}, mlp="c_fc"),
    Architecture("exaone4", SIZES | ALTERNATING | {"sliding_window_pattern": 2}),
    Architecture("seed_oss", WIDE_HEADS | {"attention_bias": True}),
    Architecture("nemotron", SIZES | {"head_dim": 16}),
)
