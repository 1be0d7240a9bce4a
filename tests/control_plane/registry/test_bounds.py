"""What one adapter may have is bounded: it is read and written as a whole."""

from pathlib import Path

import pytest

from control_plane.errors import InvalidArgument
from control_plane.registry import bounds
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey, NewAdapter
from tests.control_plane.adapter_files import write_adapter

BOT = AdapterKey("acme", "bot")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aliases", tuple(f"a{i}" for i in range(bounds.MAX_ALIASES + 1))),
        ("shared_with", tuple(f"t{i}" for i in range(bounds.MAX_SHARED_WITH + 1))),
        ("labels", {f"l{i}": "" for i in range(bounds.MAX_LABELS + 1)}),
        ("labels", {"x" * (bounds.MAX_LABEL_CHARACTERS + 1): ""}),
        ("labels", {"team": "x" * (bounds.MAX_LABEL_CHARACTERS + 1)}),
        ("labels", {"team": "\0"}),
        ("source", "/" + "x" * bounds.MAX_SOURCE_CHARACTERS),
        ("base_model", "x" * (bounds.MAX_BASE_MODEL_CHARACTERS + 1)),
    ],
)
async def test_more_than_an_adapter_may_have_is_refused_by_its_field(
    registry: Registry, root: Path, field: str, value: object
) -> None:
    given = {"source": str(write_adapter(root / "acme" / "bot")), field: value}
    with pytest.raises(InvalidArgument, match=f"^{field}"):
        await registry.register(NewAdapter(**({"key": BOT, "base_model": "tiny"} | given)))
