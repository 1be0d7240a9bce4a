"""Replaces norms and gated feed-forward blocks of a definition by modules of one pass.

Nothing is known by name: a module is replaced when ours, made from its parts, gives its numbers on
random input. Whatever does not match stays as transformers wrote it. Runs after the projections
were replaced, outside a step.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from data_plane.adapters.layout import AdapterLayout, FusedModule
from kernels.cpu.native import NativeKernels
from kernels.cpu.native_pointwise import NormOptions, gate, norm

# Largest difference to the definition's own numbers, relative to the largest of them.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SCALES = (1.0, 1e-2, 1e-3)  # of the random input: the smallest lets eps be seen


class FusedNorm(nn.Module):
    """RMS norm in one pass."""

    def __init__(self, weight: nn.Parameter, options: NormOptions, kernels: NativeKernels) -> None:
        super().__init__()
        self.weight, self.options, self._kernels = weight, options, kernels

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        return norm(self._kernels, x, self.weight, self.options)


class FusedGate(nn.Module):
    """down(silu(gate(x)) · up(x)), with gate and up computed by one product."""

    def __init__(self, gates: nn.Module, up: nn.Module, down: nn.Module, kernels: NativeKernels) -> None:
        super().__init__()
        self._gates, self._up, self._down, self._kernels = gates, up, down, kernels

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x` [..., hidden]."""
        gates = self._gates(x).flatten(0, -2)
        hidden = gate(self._kernels, gates, self._up(x).flatten(0, -2))
        y: Tensor = self._down(hidden.view(*x.shape[:-1], -1))
        return y


def fuse_pointwise(model: PreTrainedModel, layout: AdapterLayout, kernels: NativeKernels) -> int:
    """Replace every module that one of ours equals; return how many."""
    if model.dtype not in TOLERANCE:
        return 0
    # The caller's random numbers go on as if nothing had been drawn here.
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        tried = [*_norms(model, kernels), *_gates(model, layout, kernels)]
        equal = {
            name: ours
            for name, size, ours in tried
            if _same(model.get_submodule(name), ours, size, model.dtype)
        }
    for name, ours in equal.items():
        model.set_submodule(name, ours)
    return len(equal)


def _norms(model: PreTrainedModel, kernels: NativeKernels) -> Iterator[tuple[str, int, FusedNorm]]:
    """A module that has a vector and a small number may be a norm by them."""
    for name, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if len(parameters) != 1 or parameters[0].ndim != 1 or any(True for _ in module.children()):
            continue
        for eps in (value for value in vars(module).values() if isinstance(value, float)):
            for offset in (0.0, 1.0):
                options = NormOptions(eps, offset)
                yield name, parameters[0].shape[0], FusedNorm(parameters[0], options, kernels)


def _gates(
    model: PreTrainedModel, layout: AdapterLayout, kernels: NativeKernels
) -> Iterator[tuple[str, int, FusedGate]]:
    """A parent of two projections of one input and one more may be a gated block of them."""
    groups: dict[str, list[FusedModule]] = {}
    for module in layout.modules:
        groups.setdefault(module.projections[0].name.rpartition(".")[0], []).append(module)
    for parent, modules in groups.items():
        if [len(module.projections) for module in modules] != [2, 1] or not parent:
            continue
        names = [projection.name for module in modules for projection in module.projections]
        gates, up, down = map(model.get_submodule, names)
        yield parent, modules[0].in_features, FusedGate(gates, up, down, kernels)


def _same(module: nn.Module, ours: nn.Module, size: int, dtype: torch.dtype) -> bool:
    for scale in SCALES:
        x = (torch.randn(1, 3, size) * scale).to(dtype)
        try:
            expected, found = module(x), ours(x)
        except (TypeError, ValueError, RuntimeError):  # one of them takes something else
            return False
        if not isinstance(expected, Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return False
        difference = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
        if not difference < TOLERANCE[dtype]:
            return False
    return True
