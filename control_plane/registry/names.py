"""Names: which tenant, adapter and model names are well-formed, and what a model name says.

Pure text; knows nothing of what exists.
"""

import re
from dataclasses import dataclass

from control_plane.errors import InvalidArgument
from control_plane.registry.types import AdapterKey

NAME_RULE = "must be 1 to 63 lower-case letters, digits, '.', '_' or '-', the first a letter or digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class AdapterReference:
    """What a model name asks for when it names no base model."""

    key: AdapterKey  # by name or alias
    revision: int | None  # None: the current one


def check_name(field: str, value: str) -> str:
    """Return the name; InvalidArgument names the field when it is not well-formed."""
    if not _NAME.fullmatch(value):
        raise InvalidArgument(field, value, NAME_RULE)
    return value


def check_length(field: str, value: str, most: int) -> str:
    """Return a free text; InvalidArgument when it is too long, or has a NUL, which ends texts elsewhere."""
    if len(value) > most:
        raise InvalidArgument(field, f"{value[:32]}…", f"has {len(value)} characters, must be at most {most}")
    if "\0" in value:
        raise InvalidArgument(field, value, "must have no NUL character")
    return value


def check_size(field: str, size: int, most: int) -> None:
    """Raise InvalidArgument when a list or map has too many items."""
    if size > most:
        raise InvalidArgument(field, size, f"items, must be at most {most}")


def check_key(key: AdapterKey) -> AdapterKey:
    """Return the key; InvalidArgument when tenant or name is not well-formed."""
    check_name("tenant", key.tenant)
    check_name("name", key.name)
    return key


def parse_model(tenant: str, model: str) -> AdapterReference | None:
    """Read `[tenant/]adapter[@revision]`; None when it can be no adapter's name."""
    path, at, number = model.partition("@")
    owner, slash, name = path.rpartition("/")
    if at and not _NUMBER.fullmatch(number):
        return None
    if not slash:
        owner = tenant
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        return None
    return AdapterReference(AdapterKey(owner, name), int(number) if at else None)
