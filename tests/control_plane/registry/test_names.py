"""What names are well-formed and what a model name says."""

import pytest

from control_plane.errors import InvalidArgument
from control_plane.registry.names import AdapterReference, check_name, parse_model
from control_plane.registry.types import AdapterKey


@pytest.mark.parametrize("name", ["a", "support-bot", "v1.2_x", "0", "a" * 63])
def test_a_good_name_is_returned(name: str) -> None:
    assert check_name("name", name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".", "..", "a/b", "a@1", "a b", "a\n", "ä", "a" * 64])
def test_a_bad_name_is_refused_by_field_value_and_rule(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"tenant: .* must be 1 to 63") as error:
        check_name("tenant", name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("model", "reference"),
    [
        ("bot", AdapterReference(AdapterKey("acme", "bot"), None)),
        ("bot@3", AdapterReference(AdapterKey("acme", "bot"), 3)),
        ("globex/bot", AdapterReference(AdapterKey("globex", "bot"), None)),
        ("globex/bot@12", AdapterReference(AdapterKey("globex", "bot"), 12)),
        ("bot@", None),
        ("bot@0", None),
        ("bot@-1", None),
        ("bot@latest", None),
        ("bot@1@2", None),
        ("a/b/c", None),
        ("/bot", None),
        ("Bot", None),
        ("", None),
    ],
)
def test_a_model_name_is_read(model: str, reference: AdapterReference | None) -> None:
    assert parse_model("acme", model) == reference
