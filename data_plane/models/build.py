"""From a Hugging Face directory to a model that computes steps.

transformers makes the definition and reads the weights; then every traced linear module gives its
weight to a fused projection, group by group, so that at most one group exists twice, and
every attention module is bound to its layer of the KV cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data_plane.adapters.layout import AdapterLayout, FusedModule, Projection
from data_plane.errors import ModelRefused
from data_plane.kv_cache.pool import KvPool
from data_plane.models.attention import ATTENTION, PagedLayer, register
from data_plane.models.ends import are_tied, find_embedding, find_head
from data_plane.models.projection import FusedProjection, ProjectionLora, ProjectionSlice
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace
from data_plane.models.weights import EndWeights, FusedWeights, ModelWeights, row_norms_squared
from kernels.cpu.attention import PagedAttention, TorchAttention
from kernels.cpu.linear import make_linear
from kernels.cpu.native import NativeKernels
from kernels.lora.ops import LoraOps
from kernels.lora.pool import LoraModule, SlotTable


@dataclass(frozen=True, slots=True)
class LoraBinding:
    """The rank pool's modules, one a group of the trace, its slots, and how to compute with them."""

    modules: Sequence[LoraModule]
    slots: SlotTable
    ops: LoraOps


def load_config(path: Path) -> PreTrainedConfig:
    """Read the model's configuration; refuse what transformers does not know."""
    if not (path / "config.json").is_file():
        raise ModelRefused(f"model: {path} has no config.json")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelRefused(f"model: {path}: {error}") from error
    return config


def load_definition(path: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """Read the model at `path` with its own or the given dtype; refuse what transformers cannot read."""
    register()
    config = load_config(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype or "auto",
            attn_implementation=ATTENTION,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, report = loaded
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelRefused(f"model: {path}: {error}") from error
    if report["missing_keys"]:
        # transformers fills them with random numbers and goes on.
        raise ModelRefused(f"model: {path} lacks the weights {', '.join(sorted(report['missing_keys']))}")
    return prepared(model)


def load_tokenizer(path: Path) -> Any:
    """The model's tokenizer; transformers' kinds share no public type with a call and chat templates."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelRefused(f"model: {path}: its tokenizer cannot be read: {error}") from error


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """The model for inference: no gradients, no dropout, our attention."""
    register()
    model.set_attn_implementation(ATTENTION)
    model.train(False)
    model.requires_grad_(False)
    return model


def layout_of(model: PreTrainedModel, trace: ModelTrace) -> AdapterLayout:
    """Every traced group as a module that can carry LoRA, and the ends that can."""
    embedding, head = find_embedding(model), find_head(model)
    return AdapterLayout(
        tuple(_fused_module(model, group) for group in trace.groups),
        embedding=embedding,
        head=head,
        tied=are_tied(model, embedding, head),
    )


def bind_attention(
    model: PreTrainedModel,
    trace: ModelTrace,
    kv: KvPool,
    state: StepState,
    kernel: PagedAttention | None = None,
) -> None:
    """Give every attention module its layer of the KV cache, computed by `kernel` or plain PyTorch."""
    kernel = kernel or TorchAttention()
    for attention, (k_cache, v_cache) in zip(trace.attentions, kv.layers, strict=True):
        layer = PagedLayer(k_cache, v_cache, state, kernel)
        model.get_submodule(attention.name).paged = layer  # type: ignore[assignment]


def fuse_projections(
    model: PreTrainedModel,
    trace: ModelTrace,
    state: StepState,
    lora: LoraBinding | None,
    kernels: NativeKernels | None = None,
) -> list[FusedWeights]:
    """Replace every traced linear module; return what is kept of the weights, group by group."""
    kept = []
    for index, group in enumerate(trace.groups):
        weights, bias = _take_weights(model, group)
        linear = make_linear(torch.cat(weights) if len(weights) > 1 else weights[0], bias, kernels)
        kept.append(FusedWeights(linear, bias, row_norms_squared(weights)))
        bound = ProjectionLora(lora.modules[index], lora.ops, state) if lora else None
        fused = FusedProjection(linear, [weight.shape[0] for weight in weights], bound)
        for i, name in enumerate(group):
            model.set_submodule(name, ProjectionSlice(fused, i))
    return kept


def weights_of(model: PreTrainedModel, layout: AdapterLayout, fused: Sequence[FusedWeights]) -> ModelWeights:
    """What adapters are read against; before the ends are replaced."""
    ends = {}
    for end in layout.ends.values():
        module = model.get_submodule(end.name)
        bias = module.bias if end.has_bias else None
        assert isinstance(module.weight, Tensor), "ends are plain tables and linear layers"
        assert bias is None or isinstance(bias, Tensor), "ends are plain tables and linear layers"
        ends[end.name] = EndWeights(module.weight, bias, end is layout.embedding)
    return ModelWeights(layout, fused, ends, model.dtype)


def _fused_module(model: PreTrainedModel, group: tuple[str, ...]) -> FusedModule:
    weights = [_weight(model.get_submodule(name)) for name in group]
    projections = tuple(
        Projection(name, weight.shape[0]) for name, weight in zip(group, weights, strict=True)
    )
    return FusedModule(projections, weights[0].shape[1])


def _weight(module: nn.Module) -> Tensor:
    """[out_features, in_features]; GPT-2's Conv1D keeps the transpose."""
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise ModelRefused(f"{type(module).__name__} has no weight tensor")
    return weight.data.t() if isinstance(module, Conv1D) else weight.data


def _take_weights(model: PreTrainedModel, group: tuple[str, ...]) -> tuple[list[Tensor], Tensor | None]:
    modules = [model.get_submodule(name) for name in group]
    weights = [_weight(module) for module in modules]
    biases = [module.bias for module in modules]
    if all(bias is None for bias in biases):
        return weights, None
    parts = [
        bias.data if isinstance(bias, Tensor) else weight.new_zeros(weight.shape[0])
        for bias, weight in zip(biases, weights, strict=True)
    ]
    return weights, torch.cat(parts)
