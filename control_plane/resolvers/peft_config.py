"""What the control plane reads of a PEFT `adapter_config.json`.

Owns what makes a config refusable without its weights; which options the kernels support is for
workers to say.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.errors import Refused

MAX_RANK = 1_000_000
MAX_CHARACTERS = 1 << 18  # of an option; the longest lists of modules have some ten thousand


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of an adapter's config that the registry keeps."""

    rank: int  # the largest of any module
    target_modules: tuple[str, ...]
    base_model: str  # empty: not said


def parse_config(where: str, content: bytes) -> PeftConfig:
    """Read the file's content; raise Refused naming the option and its value."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise Refused(f"{where} must hold a JSON object, not {type(config).__name__}")
    if config.get("peft_type") != "LORA":
        raise Refused(f"{where}: peft_type is {config.get('peft_type')!r}, only 'LORA' is served")
    base_model = config.get("base_model_name_or_path") or ""
    if not isinstance(base_model, str):
        raise Refused(f"{where}: base_model_name_or_path must be a string, not {base_model!r}")
    _check_text(f"{where}: base_model_name_or_path", (base_model,))
    return PeftConfig(_rank(where, config), _target_modules(where, config), base_model)


def _check_text(option: str, texts: Sequence[str]) -> None:
    """Refuse what a registry cannot keep: half characters, and text beyond all measure."""
    size = sum(map(len, texts))
    if size > MAX_CHARACTERS:
        raise Refused(f"{option} has {size} characters, at most {MAX_CHARACTERS} are kept")
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise Refused(f"{option}: {text!r} is no valid Unicode")


def _rank(where: str, config: dict[str, Any]) -> int:
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise Refused(f"{where}: rank_pattern must be a JSON object, not {pattern!r}")
    ranks: dict[str, Any] = {"r": config.get("r")} | {
        f"rank_pattern[{key!r}]": rank for key, rank in pattern.items()
    }
    for option, rank in ranks.items():
        if type(rank) is not int or rank < 1:  # a bool is an int, and no rank
            raise Refused(f"{where}: {option} must be a positive integer, not {rank!r}")
        if rank > MAX_RANK:
            raise Refused(f"{where}: {option} must be at most {MAX_RANK}, not {rank}")
    return int(max(ranks.values()))


def _target_modules(where: str, config: dict[str, Any]) -> tuple[str, ...]:
    modules = config.get("target_modules") or []
    if isinstance(modules, str):
        modules = [modules]
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise Refused(f"{where}: target_modules must be a string or a list of strings, not {modules!r}")
    _check_text(f"{where}: target_modules", modules)
    return tuple(sorted(modules))
