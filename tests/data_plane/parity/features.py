"""What an adapter may do, as options of PEFT's LoraConfig for any architecture.

A feature that the worker does not serve says by which name it is refused; no other refusal counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.data_plane.parity.architectures import Architecture

RANK = 6
LORA_STD = 0.12


@dataclass(frozen=True, slots=True)
class Feature:
    """A column of the matrix."""

    name: str
    options: Callable[[Architecture], dict[str, Any]]
    refused_as: str | None = None  # the option that a refusal must name; None: must be served

    def save(self, directory: Path, architecture: Architecture, model_dir: Path) -> Path:
        """A random adapter with this feature, made by PEFT, under `directory`."""
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        options = {"r": RANK, "lora_alpha": 9, **architecture.lora, **self.options(architecture)}
        model = get_peft_model(base, LoraConfig(**options))
        _randomize(model)
        model.save_pretrained(directory)
        (directory / "README.md").unlink(missing_ok=True)
        return directory


def _randomize(model: PeftModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            elif "lora_" in name:
                parameter.normal_(std=LORA_STD)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter), alpha=LORA_STD)


def _attention(architecture: Architecture) -> dict[str, Any]:
    return {"target_modules": list(architecture.attention)}


def _all_linear(_: Architecture) -> dict[str, Any]:
    return {"target_modules": "all-linear"}


def _patterns(architecture: Architecture) -> dict[str, Any]:
    first, last = architecture.attention[0], architecture.attention[-1]
    return {
        "target_modules": "all-linear",
        "rank_pattern": {first: 3, rf".*\.1\..*{architecture.mlp}": 11},
        "alpha_pattern": {last: 30},
    }


def _regex(architecture: Architecture) -> dict[str, Any]:
    return {"target_modules": rf".*\.1\..*({architecture.attention[0]}|{architecture.mlp})"}


def _exclude(architecture: Architecture) -> dict[str, Any]:
    return {"target_modules": "all-linear", "exclude_modules": [architecture.attention[0]]}


def _embedding(architecture: Architecture) -> dict[str, Any]:
    return {"target_modules": [*architecture.attention, architecture.embedding]}


def _lm_head(architecture: Architecture) -> dict[str, Any]:
    return {"target_modules": [*architecture.attention, "lm_head"]}


def _saved(*modules: str) -> Callable[[Architecture], dict[str, Any]]:
    """`modules` in full; "embedding" stands for the architecture's own name of it."""
    return lambda a: (
        _attention(a) | {"modules_to_save": [a.embedding if m == "embedding" else m for m in modules]}
    )


def _together(architecture: Architecture) -> dict[str, Any]:
    everywhere = [*architecture.attention, architecture.mlp, architecture.embedding, "lm_head"]
    return {
        "target_modules": everywhere,
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {architecture.mlp: 3},
    }


FEATURES = (
    Feature("attention", _attention),
    Feature("all-linear", _all_linear),
    Feature("rsLoRA", lambda a: _all_linear(a) | {"use_rslora": True}),
    Feature("patterns", _patterns),
    Feature("regex", _regex),
    Feature("layers", lambda a: _attention(a) | {"layers_to_transform": [1]}),
    Feature("exclude", _exclude),
    Feature("lora_bias", lambda a: _all_linear(a) | {"lora_bias": True}),
    Feature("DoRA", lambda a: _all_linear(a) | {"use_dora": True}),
    Feature("embedding", _embedding),
    Feature("lm_head", _lm_head),
    Feature("saved head", _saved("lm_head")),
    Feature("saved embedding", _saved("embedding")),
    Feature("saved both", _saved("embedding", "lm_head")),
    Feature("together", _together),
    Feature("trained bias", lambda a: _attention(a) | {"bias": "all"}, "bias"),
    Feature(
        "trained tokens",
        lambda a: _attention(a) | {"trainable_token_indices": [1]},
        "trainable_token_indices",
    ),
)
ALL_LINEAR = next(feature for feature in FEATURES if feature.name == "all-linear")
