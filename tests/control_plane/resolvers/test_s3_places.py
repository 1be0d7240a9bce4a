"""Which URIs are places in S3, and whose they are."""

from dataclasses import replace

import pytest

from control_plane.errors import Refused
from control_plane.resolvers.s3_location import S3Location, S3Pin
from control_plane.resolvers.s3_places import TEMPLATE, S3Places
from control_plane.resolvers.types import ResolveRequest

BY_NAME = ResolveRequest(tenant="acme", name="bot")


@pytest.mark.parametrize(
    ("template", "valid"),
    [
        ("s3://bucket/{tenant}/{name}", True),
        ("s3://bucket/a/{tenant}/b/{name}/c", True),
        ("s3://bucket/{name}/{tenant}", False),
        ("s3://bucket/{tenant}-{name}", False),
        ("s3://bucket/x{tenant}/{name}", False),
        ("s3://bucket/{name}", False),
        ("s3://{tenant}/{name}", False),
        ("s3://bucket/{tenant}/{name}/{other}", False),
        ("bucket/{tenant}/{name}", False),
    ],
)
def test_a_template_has_tenant_and_name_as_whole_parts(template: str, valid: bool) -> None:
    assert bool(TEMPLATE.fullmatch(template)) is valid


def test_a_name_is_looked_for_where_the_template_says_and_nowhere_without_one() -> None:
    places = S3Places({"bucket"}, "s3://bucket/a/{tenant}/b/{name}/c")
    assert places.locate(BY_NAME) == S3Location("bucket", "a/acme/b/bot/c")
    assert S3Places({"bucket"}).locate(BY_NAME) is None


@pytest.mark.parametrize("path", ["", "/", "/a//b", "/a/../b", "/..", "/./a", "/a\n"])
def test_a_uri_that_could_mean_another_place_is_refused(path: str) -> None:
    with pytest.raises(Refused, match="s3://bucket"):
        S3Places({"bucket"}).locate(replace(BY_NAME, source=f"s3://bucket{path}"))


@pytest.mark.parametrize("source", ["s3://bucket/acme/bot", "s3://bucket/acmes/bot"])
def test_without_a_template_nothing_is_kept_for_a_tenant(source: str) -> None:
    with pytest.raises(Refused, match="kept for 'acme'"):
        S3Places({"bucket"}).locate(replace(BY_NAME, source=source, confined=True))


def test_a_tenants_place_is_not_that_of_one_whose_name_begins_alike() -> None:
    places = S3Places({"bucket"}, "s3://bucket/{tenant}/{name}")
    confined = replace(BY_NAME, confined=True)
    assert places.locate(replace(confined, source="s3://bucket/acme/other"))
    with pytest.raises(Refused, match="kept for 'acme'"):
        places.locate(replace(confined, source="s3://bucket/acme2/other"))


def test_the_pins_are_in_the_uri_in_order_of_file_and_the_version_goes_before_the_etag() -> None:
    location = S3Location("bucket", "a/b")
    pins = {"w.safetensors": S3Pin("v 1", "x"), "c.json": S3Pin("", "e-2")}
    assert location.pinned(pins) == "s3://bucket/a/b#c.json=etag%3Ae-2&w.safetensors=version%3Av+1"
