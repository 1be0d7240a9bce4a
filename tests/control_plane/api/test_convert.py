"""Tokens and versions from callers: those that no listing returned are refused by name."""

import pytest

from control_plane.api import convert, paging
from control_plane.errors import InvalidArgument


@pytest.mark.parametrize("text", ["x", "-1", "٣", "9" * 19, "1" * 5000])
def test_a_resource_version_that_redis_cannot_count_to_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="resource_version"):
        convert.resource_version(text)


def test_a_resource_version_is_a_number_and_none_is_none() -> None:
    assert convert.resource_version("9" * 18) == int("9" * 18)
    assert convert.resource_version("") is None


@pytest.mark.parametrize("token", ["é", "a", "====", "_-8=", "\0"])
def test_a_page_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        paging.begin(10, token)
