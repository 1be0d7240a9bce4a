"""Which tensor of an adapter's file belongs to which projection; every one does, or it is refused.

Pure: tensors, config and layout in, checked pairs out. A tensor that is not applied and a module
that gets none would both be silent no-ops, so neither is let through.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from data_plane.adapters.layout import AdapterLayout, Target
from data_plane.adapters.packing import LoraPair
from data_plane.adapters.peft_config import PeftConfig
from data_plane.errors import AdapterRefused

PREFIX = "base_model.model."
KEY = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def match_tensors(tensors: Mapping[str, Tensor], config: PeftConfig, layout: AdapterLayout) -> list[LoraPair]:
    """Pair every tensor with its partner and check names, dtypes and shapes."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, matrix = _parse(key, config, layout)
        partners = found.setdefault(module, {})
        if matrix in partners:
            raise AdapterRefused(f"tensor {key}: {module} has a second lora_{matrix}")
        partners[matrix] = tensor
        _check(key, matrix, tensor, layout.targets[module], config.rank(module))
    _refuse_missing(found, config, layout)
    return [
        LoraPair(name, matrices["A"], matrices["B"], config.scaling(name)) for name, matrices in found.items()
    ]


def _parse(key: str, config: PeftConfig, layout: AdapterLayout) -> tuple[str, str]:
    match = KEY.fullmatch(key.removeprefix(PREFIX))
    if match is None:
        raise AdapterRefused(f"tensor {key}: only lora_A.weight and lora_B.weight of a module are supported")
    module = match["module"]
    if module not in layout.targets:
        raise AdapterRefused(f"tensor {key}: the base model has no module {module} that takes LoRA")
    if not config.targets(module):
        raise AdapterRefused(f"tensor {key}: {module} is not among target_modules of adapter_config.json")
    return module, match["matrix"]


def _check(key: str, matrix: str, tensor: Tensor, target: Target, rank: int) -> None:
    expected = (rank, target.in_features) if matrix == "A" else (target.out_features, rank)
    if tuple(tensor.shape) != expected:
        raise AdapterRefused(f"tensor {key}: shape {list(tensor.shape)}, expected {list(expected)}")
    if tensor.dtype not in FLOATS:
        raise AdapterRefused(f"tensor {key}: dtype {tensor.dtype} is not a floating-point type")


def _refuse_missing(
    found: Mapping[str, Mapping[str, Tensor]], config: PeftConfig, layout: AdapterLayout
) -> None:
    for module, matrices in found.items():
        if len(matrices) == 1:
            missing = "B" if "A" in matrices else "A"
            raise AdapterRefused(f"tensor {module}.lora_{missing}.weight is missing, its partner is there")
    for module in layout.targets:
        if config.targets(module) and module not in found:
            raise AdapterRefused(f"{module}: named by target_modules, but the files have no tensors for it")
    if not found:
        raise AdapterRefused("target_modules matches no module of the base model")
