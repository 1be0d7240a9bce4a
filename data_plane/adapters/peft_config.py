"""The options of a PEFT adapter that decide which modules it changes and how strongly.

The matching rules are PEFT's own (`check_target_module_exists`, `get_pattern_key`), so that an
adapter changes here exactly what it changed in training. `peft_json` reads the values.
"""

import math
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from data_plane.errors import AdapterRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """The options that decide which modules an adapter changes and how strongly."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]  # a string: a regular expression, or "all-linear"
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...]  # empty: all
    layers_pattern: tuple[str, ...]  # empty: any
    use_dora: bool = False
    lora_bias: bool = False
    modules_to_save: tuple[str, ...] = ()
    ensure_weight_tying: bool = False

    @property
    def key(self) -> Hashable:
        """Equal for options that mean the same."""
        return tuple(_key(field.name, getattr(self, field.name)) for field in fields(self))

    def targets(self, name: str) -> bool:
        """Whether the module of this name is changed."""
        if self._excludes(name):
            return False
        if isinstance(self.target_modules, str):
            return self._is_all_linear or bool(re.fullmatch(self.target_modules, name))
        # A module that is named in full is changed whatever its layer.
        return name in self.target_modules or (_named(name, self.target_modules) and self._in_layers(name))

    def targets_end(self, name: str) -> bool:
        """Whether the embedding or output head of this name is changed: "all-linear" means neither."""
        return not self._is_all_linear and self.targets(name)

    def saves(self, name: str) -> bool:
        """Whether the adapter has a whole matrix of its own for the module of this name."""
        return any(name.endswith(saved) for saved in self.modules_to_save)

    def rank(self, name: str) -> int:
        """The module's rank."""
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, name), self.r)

    def scaling(self, name: str) -> float:
        """What B is multiplied with: alpha / r, or alpha / √r for rsLoRA."""
        alpha = self.alpha_pattern.get(_pattern_key(self.alpha_pattern, name), self.lora_alpha)
        rank = self.rank(name)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def _is_all_linear(self) -> bool:
        return isinstance(self.target_modules, str) and self.target_modules.lower() == "all-linear"

    def _excludes(self, name: str) -> bool:
        if isinstance(self.exclude_modules, str):
            return bool(self.exclude_modules) and bool(re.fullmatch(self.exclude_modules, name))
        return _named(name, self.exclude_modules)

    def _in_layers(self, name: str) -> bool:
        if not self.layers_to_transform:
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        prefix = r"(?:^|.*?\.)" if self.layers_pattern else r".*?\."
        matches = (re.match(prefix + layer_expression(pattern), name) for pattern in patterns)
        match = next((match for match in matches if match), None)
        if match is None:
            return False
        if match["layer"] is None:  # a pattern with alternatives of its own may leave the number out
            raise AdapterRefused(
                f"layers_pattern {list(self.layers_pattern)} finds no layer's number in {name}"
            )
        return int(match["layer"]) in self.layers_to_transform


def _key(name: str, value: Any) -> Hashable:
    # PEFT writes these as sets, in another order in every process.
    if name in ("target_modules", "exclude_modules") and not isinstance(value, str):
        return frozenset(value)
    # Of patterns, the first that matches counts.
    key: Hashable = tuple(value.items()) if isinstance(value, Mapping) else value
    return key


def _named(name: str, names: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in names)


def layer_expression(pattern: str) -> str:
    """What tells a module's layer, after what comes before the list of layers."""
    return rf"{pattern}\.(?P<layer>\d+)\."


def suffix_expression(pattern: str) -> str:
    """What matches the modules whose names end with the pattern."""
    return rf"(.*\.)?({pattern})$"


def _pattern_key(patterns: Mapping[str, object], name: str) -> str:
    """The first pattern that the module's name ends with, as PEFT looks them up."""
    return next((key for key in patterns if re.match(suffix_expression(key), name)), name)
