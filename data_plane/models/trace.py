"""What a model does with its linear layers and attention, found by running it once on two tokens.

Projections that belong together are those of one parent called with the very same input tensor;
the shapes of the KV cache are those that attention receives. Nothing is known by name, so a new
architecture needs no entry anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from data_plane.kv_cache.pool import KvShape
from kernels.cpu.attention import AttentionOptions


@dataclass(frozen=True, slots=True)
class TracedAttention:
    """An attention module, by name, its cache's shape and what it adds to plain attention."""

    name: str
    shape: KvShape
    options: AttentionOptions  # of the traced call


@dataclass(frozen=True, slots=True)
class ModelTrace:
    """Groups of linear modules by name, and the attention modules, both in order of computation.

    No attention at all means that it does not go through AttentionInterface; the self-check refuses that.
    """

    groups: tuple[tuple[str, ...], ...]
    attentions: tuple[TracedAttention, ...]


def is_linear(module: nn.Module) -> bool:
    """Whether it computes x Wᵀ + b and nothing else."""
    return type(module) in (nn.Linear, Conv1D)


def trace(model: PreTrainedModel) -> ModelTrace:
    """Run `model` on two tokens and report what was called with what.

    The output projection is left out: PEFT does not count it among "all-linear".
    """
    calls = _Calls()
    with _watch(model, calls), torch.inference_mode():
        ids = torch.tensor([[0, 1]])
        model(input_ids=ids, position_ids=torch.tensor([[0, 1]]), use_cache=False)
    return ModelTrace(tuple(_groups(calls.linears)), tuple(calls.attentions))


@dataclass(slots=True)
class _Calls:
    # The input is kept, so that no later tensor can take its identity.
    linears: list[tuple[str, Tensor]] = field(default_factory=list)
    attentions: list[TracedAttention] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _AttentionRecorder:
    name: str
    calls: _Calls

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        shape = KvShape(key.shape[1], key.shape[-1], value.shape[-1])
        self.calls.attentions.append(TracedAttention(self.name, shape, options))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1])


@contextmanager
def _watch(model: PreTrainedModel, calls: _Calls) -> Iterator[None]:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    handles = []
    for name, module in model.named_modules():
        if is_linear(module) and module is not head:

            def record(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                calls.linears.append((name, args[0]))

            handles.append(module.register_forward_pre_hook(record))
        elif not is_linear(module):
            module.paged = _AttentionRecorder(name, calls)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in model.modules():
            module.__dict__.pop("paged", None)


def _groups(linears: list[tuple[str, Tensor]]) -> Iterator[tuple[str, ...]]:
    times: dict[str, int] = {}
    for name, _ in linears:
        times[name] = times.get(name, 0) + 1
    members: dict[tuple[str, int], list[str]] = {}
    for name, value in linears:
        # A module called more than once shares with nobody: a sibling may be called in between.
        key = (name.rpartition(".")[0], id(value)) if times[name] == 1 else (name, 0)
        group = members.setdefault(key, [])
        if name not in group:
            group.append(name)
    yield from map(tuple, members.values())
