"""Adapters named at start, in the forms that people know: `name=path`, or a JSON object.

Knows the forms only; whether a path holds an adapter shows when it is read.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_plane.errors import InvalidRequest

FORM = 'must be name=path or {"name": …, "path": …, "base_model_name": …}'
FIELDS = {"name", "path", "base_model_name"}


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapter to load at start."""

    name: str
    path: Path
    base_model_name: str = ""  # empty: whatever is served


def parse_lora_modules(value: object) -> tuple[LoraModule, ...]:
    """One item or many, as text, as objects or as a JSON list; raise InvalidRequest for another form."""
    if isinstance(value, str):
        value = _json(value) if value.lstrip().startswith("[") else list(_split(value.strip()))
    if isinstance(value, dict | LoraModule):
        value = [value]
    if not isinstance(value, Iterable):
        raise InvalidRequest("lora_modules", value, FORM)
    modules = tuple(_module(item) for item in value)
    names = [module.name for module in modules]
    if len(set(names)) < len(names):
        raise InvalidRequest("lora_modules", names, "must have different names")
    return modules


def _split(text: str) -> Iterator[str]:
    """Items with commas between them, as a repeated flag arrives; a path with a comma needs JSON."""
    while text:
        end = len(text)
        if text.startswith("{"):
            try:
                _, end = json.JSONDecoder().raw_decode(text)
            except ValueError as error:
                raise InvalidRequest("lora_modules", text, FORM) from error
        elif "," in text:
            end = text.index(",")
        yield text[:end]
        text = text[end:].lstrip(" ,")


def _module(item: Any) -> LoraModule:
    if isinstance(item, LoraModule):
        return item
    if isinstance(item, str):
        item = _json(item) if item.lstrip().startswith("{") else _pair(item)
    given = isinstance(item, dict) and all(item.get(field) for field in ("name", "path"))
    if not given or not item.keys() <= FIELDS:
        raise InvalidRequest("lora_modules", item, FORM)
    return LoraModule(
        name=str(item["name"]),
        path=Path(str(item["path"])).absolute(),
        base_model_name=str(item.get("base_model_name") or ""),
    )


def _pair(text: str) -> dict[str, str]:
    name, _, path = text.partition("=")
    return {"name": name.strip(), "path": path.strip()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest("lora_modules", text, FORM) from error
