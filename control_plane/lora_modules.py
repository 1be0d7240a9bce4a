"""Adapters named at start, in the forms that people know: `name=path`, or a JSON object.

The worker's setting of the same name takes the same forms; here a name may be `tenant/name`, and a path
any source that the resolvers know. Knows the forms only; what is there shows when it is read.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from control_plane.errors import InvalidArgument
from control_plane.registry.names import check_key
from control_plane.registry.types import AdapterKey

FORM = 'must be [tenant/]name=source or {"name": …, "path": …, "base_model_name": …}'
FIELDS = frozenset({"name", "path", "base_model_name"})
# Of names without a tenant: administrators' own requests find them without one.
DEFAULT_TENANT = "admin"


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapter to register at start."""

    key: AdapterKey
    source: str
    base_model: str = ""  # empty: whatever is served


def parse_lora_modules(value: object) -> tuple[LoraModule, ...]:
    """One item or many, as text, as objects or as a JSON list; raise InvalidArgument for another form."""
    if isinstance(value, str):
        value = _json(value) if value.lstrip().startswith("[") else list(_split(value.strip()))
    if isinstance(value, dict | LoraModule):
        value = [value]
    if not isinstance(value, Iterable):
        raise InvalidArgument("lora_modules", value, FORM)
    modules = tuple(_module(item) for item in value)
    names = [str(module.key) for module in modules]
    if len(set(names)) < len(names):
        raise InvalidArgument("lora_modules", names, "must have different names")
    return modules


def _split(text: str) -> Iterator[str]:
    """Items with commas between them, as a repeated flag arrives; a source with a comma needs JSON."""
    while text:
        end = len(text)
        if text.startswith("{"):
            try:
                _, end = json.JSONDecoder().raw_decode(text)
            except ValueError as error:
                raise InvalidArgument("lora_modules", text, FORM) from error
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
        raise InvalidArgument("lora_modules", item, FORM)
    tenant, slash, name = str(item["name"]).partition("/")
    key = AdapterKey(tenant, name) if slash else AdapterKey(DEFAULT_TENANT, tenant)
    return LoraModule(check_key(key), str(item["path"]), str(item.get("base_model_name") or ""))


def _pair(text: str) -> dict[str, str]:
    name, _, path = text.partition("=")
    return {"name": name.strip(), "path": path.strip()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgument("lora_modules", text, FORM) from error
