"""What the control plane resolves in S3 or the hub, a worker reads: the same bytes, by the URI alone.

Neither plane imports the other, so the form of a pinned URI is written down twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import pytest

from control_plane.resolvers.hub import HubResolver
from control_plane.resolvers.s3 import S3Resolver
from control_plane.resolvers.s3_client import S3Access as ResolverAccess
from control_plane.resolvers.s3_places import S3Places
from control_plane.resolvers.types import Resolved, Resolver, ResolveRequest
from data_plane.adapters.hub_source import HubSource
from data_plane.adapters.places import AdapterFiles
from data_plane.adapters.reader import content_digest
from data_plane.adapters.s3_source import S3Access, S3Source
from data_plane.errors import AdapterRefused
from tests.control_plane.adapter_files import write_adapter
from tests.hub_server import hub_server
from tests.s3.service import KEY, SECRET, S3Service, s3_service

PREFIX = "odd & names/ü+%2F=x"


@dataclass(frozen=True)
class S3Pair:
    """Both planes before one service."""

    service: S3Service
    resolver: S3Resolver
    source: S3Source


@pytest.fixture(scope="module")
def service() -> Iterator[S3Service]:
    with s3_service() as service:
        service.create_bucket("plain")
        service.create_bucket("versioned", versioned=True)
        yield service


@pytest.fixture
def s3(service: S3Service) -> S3Pair:
    access = {"endpoint_url": service.url, "access_key_id": KEY, "secret_access_key": SECRET}
    buckets = ("plain", "versioned")
    resolver = S3Resolver(S3Places(buckets), ResolverAccess(**access, region="us-east-1"))
    return S3Pair(service, resolver, S3Source(buckets, S3Access(**access, region="us-east-1")))


async def resolve(resolver: Resolver, source: str) -> Resolved:
    resolved = await resolver.resolve(ResolveRequest(tenant="acme", name="bot", source=source))
    assert resolved is not None
    return resolved


def digest_of(files: AdapterFiles) -> str:
    return content_digest({name: files.read(name, max_bytes=1 << 20) for name in files.names()})


@pytest.mark.parametrize("bucket", ["plain", "versioned"])
async def test_a_worker_reads_the_objects_that_were_resolved(s3: S3Pair, tmp_path: Path, bucket: str) -> None:
    s3.service.upload(write_adapter(tmp_path / "bot"), bucket, PREFIX)
    resolved = await resolve(s3.resolver, f"s3://{bucket}/{PREFIX}")
    await s3.resolver.close()
    assert digest_of(s3.source.open(resolved.uri)) == resolved.digest


async def test_after_an_overwrite_a_worker_reads_the_old_version_or_nothing(
    s3: S3Pair, tmp_path: Path
) -> None:
    old, new = write_adapter(tmp_path / "old"), write_adapter(tmp_path / "new", rank=8)
    resolved = {}
    for bucket in ("plain", "versioned"):
        s3.service.upload(old, bucket, "moving")
        resolved[bucket] = await resolve(s3.resolver, f"s3://{bucket}/moving")
        s3.service.upload(new, bucket, "moving")
    await s3.resolver.close()
    assert digest_of(s3.source.open(resolved["versioned"].uri)) == resolved["versioned"].digest
    with pytest.raises(AdapterRefused, match="overwritten since"):
        digest_of(s3.source.open(resolved["plain"].uri))


@pytest.mark.parametrize("directory", ["", "adapters/bot"])
async def test_a_worker_reads_the_commit_that_was_resolved(
    tmp_path: Path, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    prefix = f"{directory}/" if directory else ""
    with hub_server() as hub:
        hub.commit("acme/bot", write_adapter(tmp_path / "old"), prefix)
        resolver = HubResolver(("acme/bot",), endpoint=hub.url)
        resolved = await resolve(resolver, "/".join(filter(None, ("hf://acme/bot", directory))))
        hub.commit("acme/bot", write_adapter(tmp_path / "new", rank=8), prefix)
        source = HubSource(("acme/*",), endpoint=hub.url)
        assert digest_of(source.open(resolved.uri)) == resolved.digest
