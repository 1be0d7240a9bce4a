"""What every decoder layer calls, in order, found by running the model once on two short sequences.

Knows modules by what they do: our norms, our projections, our attention. What the order means is
for others to say.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_plane.models.attention import PagedLayer
from data_plane.models.pointwise import FusedNorm
from data_plane.models.projection import FusedProjection, ProjectionSlice
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace
from kernels.cpu.attention import AttentionOptions
from kernels.cpu.paging import PagedChunk, paged_batch

LENGTHS = (4, 3)
POSITIONS = (0, 1, 2, 3, 41, 42, 43)  # one sequence far from its beginning: rotation counts


@dataclass(slots=True)
class LayerRun:
    """What a layer was called with, and what it called."""

    name: str
    paged: PagedLayer  # of its one attention
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    called: list[FusedNorm | FusedProjection | AttentionOptions] = field(default_factory=list)
    num_heads: int = 0
    output: Any = None

    @property
    def stream(self) -> Tensor:
        """The residual stream [1, num_tokens, hidden] that went in."""
        stream: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return stream

    @property
    def order(self) -> str:
        """A letter a call: Norm, Projection, Attention."""
        letters = {FusedNorm: "N", FusedProjection: "P", AttentionOptions: "A"}
        return "".join(letters[type(called)] for called in self.called)

    @property
    def norms(self) -> list[FusedNorm]:
        """Those that were called, in order."""
        return [called for called in self.called if isinstance(called, FusedNorm)]

    @property
    def projections(self) -> list[FusedProjection]:
        """Those that were called, in order; siblings are one."""
        return [called for called in self.called if isinstance(called, FusedProjection)]

    @property
    def options(self) -> AttentionOptions:
        """Of its attention."""
        return next(called for called in self.called if isinstance(called, AttentionOptions))


@dataclass(frozen=True, slots=True)
class _Recorder:
    """Stands where an attention module's paged layer stood, and passes on to it."""

    run: LayerRun

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        self.run.num_heads = query.shape[1]
        self.run.called.append(options)
        return self.run.paged.attend(query, key, value, options)


@contextmanager
def short_step(state: StepState, block_size: int) -> Iterator[None]:
    """A step of two short sequences in the first blocks of the cache, which no request has yet."""
    blocks, chunks = 0, []
    for length in LENGTHS:
        needed = -(-length // block_size)
        chunks.append(PagedChunk(0, length, tuple(range(blocks, blocks + needed))))
        blocks += needed
    state.set(paged_batch(chunks, block_size), None, torch.tensor([sum(LENGTHS) - 1]))
    try:
        yield
    finally:
        state.batch = state.segments = state.logit_rows = None


def trace_layers(model: PreTrainedModel, found: ModelTrace) -> list[LayerRun]:
    """Run the model inside a short step; empty when an attention is in no decoder layer of its own."""
    attentions: Mapping[str, Any] = {t.name: model.get_submodule(t.name) for t in found.attentions}
    layers = {name: _layer_of(model, name) for name in attentions}
    if len(set(layers.values()) - {""}) < len(attentions):
        return []
    runs = {name: LayerRun(layers[name], module.paged) for name, module in attentions.items()}
    handles = [handle for run in runs.values() for handle in _hooks(model.get_submodule(run.name), run)]
    for name, module in attentions.items():
        module.paged = _Recorder(runs[name])
    try:
        ids = torch.arange(1, 1 + len(POSITIONS))[None]
        model(input_ids=ids, position_ids=torch.tensor([POSITIONS]), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
        for name, module in attentions.items():
            module.paged = runs[name].paged
    return list(runs.values())


def _layer_of(model: nn.Module, attention: str) -> str:
    """The entry of a list of modules that an attention module is in; "" when it is in none."""
    name = attention
    while name:
        parent = name.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            return name
        name = parent
    return ""


def _hooks(layer: nn.Module, run: LayerRun) -> Iterator[Any]:
    yield layer.register_forward_pre_hook(_note_arguments(run), with_kwargs=True)
    yield layer.register_forward_hook(_note_output(run))
    for module in layer.modules():
        if isinstance(module, FusedNorm | ProjectionSlice):
            yield module.register_forward_pre_hook(_note_call(run))


def _note_arguments(run: LayerRun) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run.args, run.kwargs = args, kwargs

    return hook


def _note_output(run: LayerRun) -> Callable[..., None]:
    def hook(_: nn.Module, args: object, output: object) -> None:
        run.output = output

    return hook


def _note_call(run: LayerRun) -> Callable[..., None]:
    def hook(module: FusedNorm | ProjectionSlice, _: object) -> None:
        called = module.fused if isinstance(module, ProjectionSlice) else module
        if called not in run.called:  # siblings are one product
            run.called.append(called)

    return hook
