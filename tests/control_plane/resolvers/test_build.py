"""The chain from settings: which resolvers, in which order, and what they need."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from control_plane.config import ControlSettings
from control_plane.errors import InvalidArgument, NotFound
from control_plane.resolvers.build import build_chain
from control_plane.resolvers.types import ResolveRequest
from tests.control_plane.resolvers.conftest import PLACES
from tests.s3.service import KEY, SECRET, S3Service

S3 = {"resolvers": ("s3",), "s3_buckets": ("adapters",)}


async def test_the_configured_resolvers_are_asked_in_their_order(
    monkeypatch: pytest.MonkeyPatch, service: S3Service, adapter: Path
) -> None:
    monkeypatch.setenv("LORAPLANE_RESOLVERS", "filesystem,s3,hub")
    monkeypatch.setenv("LORAPLANE_S3_BUCKETS", "adapters,versioned")
    monkeypatch.setenv("LORAPLANE_S3_TEMPLATE", PLACES.template)
    monkeypatch.setenv("LORAPLANE_S3_ENDPOINT_URL", service.url)
    monkeypatch.setenv("LORAPLANE_S3_REGION", "us-east-1")
    monkeypatch.setenv("LORAPLANE_S3_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("LORAPLANE_S3_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("LORAPLANE_HUB_REPOS", "acme/*")
    chain = build_chain(ControlSettings(), lambda: 0.0)
    service.upload(adapter, "adapters", "tenants/acme/built")
    found = await chain.resolve(ResolveRequest(tenant="acme", name="built"))
    assert found.uri.startswith("s3://adapters/tenants/acme/built#")
    with pytest.raises(NotFound, match="asked: filesystem, s3, hub"):
        await chain.resolve(ResolveRequest(tenant="acme", name="nobody-has-it"))
    await chain.close()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"resolvers": ("gopher",)}, "resolvers: 'gopher' must be one of filesystem, hub, s3"),
        ({"resolvers": ("s3",)}, "s3_buckets: .* must name at least one bucket"),
        (S3 | {"s3_template": "s3://adapters/{name}"}, "s3_template: .* must be s3://<bucket>"),
        (S3 | {"s3_template": "s3://other/{tenant}/{name}"}, "s3_template: .* one of s3_buckets"),
        (S3 | {"s3_access_key_id": "key"}, "s3_access_key_id and s3_secret_access_key go together"),
        ({"resolvers": ("hub",)}, "hub_repos: .* must name at least one repository"),
        ({"hub_repos": ("*",)}, "hub_repos: .* must be <owner>/<name> or <owner>/"),
    ],
)
def test_a_setting_that_cannot_be_served_stops_the_start(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ControlSettings(**settings)


def test_without_its_library_a_resolver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "control_plane.resolvers.s3", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'loraplane\[s3\]'"):
        build_chain(ControlSettings(**S3), lambda: 0.0)  # type: ignore[arg-type]


def test_secrets_are_in_no_printed_form() -> None:
    settings = ControlSettings(
        s3_access_key_id="key",
        s3_secret_access_key="hidden",
        hub_token="hidden",  # type: ignore[arg-type]
    )
    assert "hidden" not in repr(settings)
