"""Replaces every decoder layer that the C++ kernels can compute whole.

Nothing is known by name. The order in which a layer calls its norms, projections and attention says
what it may be; a way to compute it is taken when it gives the layer's own numbers on random input.
What matches no way stays as transformers wrote it. Runs last, because it moves modules to other
names, and outside a step.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_plane.models.fused_layer import FusedLayer, chain, computes
from data_plane.models.layer_trace import LayerRun, short_step, trace_layers
from data_plane.models.pointwise import FusedGate, FusedNorm
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace
from kernels.cpu.attention import TorchAttention
from kernels.cpu.native import NativeKernels
from kernels.cpu.native_attention import NativeAttention
from kernels.cpu.native_layer import Activation, LayerBuffers, LayerNorm, LayerWeights, NativeLayer
from kernels.cpu.native_linear import NativeLinear

# Largest difference to the definition's own numbers, relative to the largest of them.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SCALES = (1.0, 1e-2)  # of the random input: at the smallest, what the layer adds is all there is to see
# Norm, qkv, norms of queries and keys, attention, o, norms between the halves, gate and up, down, norm.
ORDER = re.compile("(N?)P(NN)?AP(N{0,2})PP(N?)")


def fuse_layers(model: PreTrainedModel, found: ModelTrace, state: StepState, kernels: NativeKernels) -> int:
    """Replace what can be replaced; return how many layers."""
    if model.dtype not in TOLERANCE or not found.attentions:
        return 0
    paged: Any = model.get_submodule(found.attentions[0].name).paged
    block_size: int = paged.k_cache.shape[1]
    make = _Maker(kernels, NativeAttention(kernels, TorchAttention()), state, LayerBuffers(model.dtype))
    # The caller's random numbers go on as if nothing had been drawn here.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), short_step(state, block_size):
        torch.manual_seed(0)
        runs = trace_layers(model, found)
        ours = {run.name: make.layer(model.get_submodule(run.name), run) for run in runs}
    equal = {name: layer for name, layer in ours.items() if layer is not None}
    for name, layer in equal.items():
        model.set_submodule(name, layer)
    for follow in _chains(runs):
        if all(run.name in equal for run in follow):
            chain([equal[run.name] for run in follow], kernels)
    return len(equal)


def _chains(runs: Sequence[LayerRun]) -> Iterator[list[LayerRun]]:
    """Layers of which each was given the very tensor that the one before returned."""
    follow: list[LayerRun] = []
    for run in runs:
        if follow and run.stream is not follow[-1].output:
            yield follow
            follow = []
        follow.append(run)
    yield follow


@dataclass(frozen=True, slots=True)
class _Maker:
    """What all layers of a model share."""

    kernels: NativeKernels
    attention: NativeAttention
    state: StepState
    buffers: LayerBuffers

    def layer(self, definition: nn.Module, run: LayerRun) -> FusedLayer | None:
        """The first way to compute the layer that gives its numbers."""
        for weights in _ways(definition, run):
            native = NativeLayer(self.attention, weights, self.buffers)
            ours = FusedLayer(definition, native, run.projections, self.state, self.kernels)
            if _same(definition, ours, run, weights.qkv.in_features):
                return ours
        return None


def _ways(definition: nn.Module, run: LayerRun) -> Iterator[LayerWeights]:
    """What the layer may be, as far as its sizes say."""
    linears = [p.linear for p in run.projections if isinstance(p.linear, NativeLinear)]
    if len(linears) != 4 or len(run.projections) != 4 or not all(map(computes, run.projections)):
        return
    qkv, o, gate_up, down = linears
    choices = product(_norms(run), _residuals(definition), _activations(definition), (True, False))
    for norms, residual, activation, rotates in choices:
        weights = LayerWeights(
            qkv=qkv,
            o=o,
            gate_up=gate_up,
            down=down,
            norms=norms,
            num_heads=run.num_heads,
            k_cache=run.paged.k_cache,
            v_cache=run.paged.v_cache,
            attention=run.options,
            activation=activation,
            rotates=rotates,
            residual=residual,
        )
        if weights.fits:
            yield weights


def _norms(run: LayerRun) -> Iterator[Mapping[str, LayerNorm]]:
    """Where the norms may be: one alone between the halves belongs to either."""
    found = ORDER.fullmatch(run.order)
    if found is None:
        return
    before, heads, between, after = (len(group or "") for group in found.groups())
    middles = (["after_attention"], ["before_mlp"]) if between == 1 else (["after_attention", "before_mlp"],)
    for middle in middles:
        places = ["before_attention"] * before + ["query_norm", "key_norm"][:heads] + middle[:between]
        places += ["after_mlp"] * after
        yield {place: _norm(norm) for place, norm in zip(places, run.norms, strict=True)}


def _norm(norm: FusedNorm) -> LayerNorm:
    return LayerNorm(norm.weight, norm.options)


def _residuals(definition: nn.Module) -> Iterator[float]:
    """Granite multiplies what joins the stream by a number that its layers have."""
    yield 1.0
    yield from (value for value in vars(definition).values() if isinstance(value, float))


def _activations(definition: nn.Module) -> Iterator[Activation]:
    """The gate's, told apart in fp32: in bf16 the GELUs are too much alike."""
    modules = list(definition.modules())
    if any(isinstance(module, FusedGate) for module in modules):
        yield Activation.SILU
        return
    x = torch.linspace(-8, 8, 999)
    ours = {
        Activation.SILU: nn.functional.silu(x),
        Activation.GELU_TANH: nn.functional.gelu(x, approximate="tanh"),
    }
    for module in modules:
        if any(True for _ in module.children()) or any(True for _ in module.parameters()):
            continue
        try:
            found = module(x)
        except (TypeError, ValueError, RuntimeError):  # it takes something else
            continue
        for activation, expected in ours.items():
            if (
                isinstance(found, Tensor)
                and found.shape == x.shape
                and torch.allclose(found, expected, atol=1e-6)
            ):
                yield activation


def _same(definition: nn.Module, ours: FusedLayer, run: LayerRun, width: int) -> bool:
    dtype = run.paged.k_cache.dtype
    args, kwargs = run.args[1:], {k: v for k, v in run.kwargs.items() if k != "hidden_states"}
    for scale in SCALES:
        x = (torch.randn(1, run.stream.shape[1], width) * scale).to(dtype)
        expected, found = definition(x, *args, **kwargs), ours(x, *args, **kwargs)
        if not isinstance(expected, Tensor) or expected.shape != found.shape:
            return False
        difference = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
        if not difference < TOLERANCE[dtype]:
            return False
    return True
