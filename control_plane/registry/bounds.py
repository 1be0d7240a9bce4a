"""Bounds: what one adapter may have.

It is read and written as a whole, and every page of a listing has many.
"""

from control_plane.registry import names
from control_plane.registry.types import NewAdapter

MAX_ALIASES = 64
MAX_SHARED_WITH = 1000
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
MAX_SOURCE_CHARACTERS = 4096
MAX_BASE_MODEL_CHARACTERS = 512


def check_new(new: NewAdapter) -> None:
    """Raise InvalidArgument unless an adapter may be registered like this."""
    names.check_key(new.key)
    names.check_size("aliases", len(new.aliases), MAX_ALIASES)
    names.check_size("labels", len(new.labels), MAX_LABELS)
    for label, value in new.labels.items():
        names.check_length("labels", label, MAX_LABEL_CHARACTERS)
        names.check_length(f"labels[{label!r}]", value, MAX_LABEL_CHARACTERS)
    names.check_length("base_model", new.base_model, MAX_BASE_MODEL_CHARACTERS)
    for alias in new.aliases:
        names.check_name("aliases", alias)
    names.check_size("shared_with", len(new.shared_with), MAX_SHARED_WITH)
    for tenant in new.shared_with:
        names.check_name("shared_with", tenant)
