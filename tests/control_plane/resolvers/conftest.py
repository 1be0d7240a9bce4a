"""One S3 service for the session; a proxy before it and a resolver for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from control_plane.resolvers.s3 import S3Resolver
from control_plane.resolvers.s3_client import S3Access
from control_plane.resolvers.s3_places import S3Places
from tests.control_plane.adapter_files import write_adapter
from tests.s3.proxy import FaultyProxy
from tests.s3.service import KEY, SECRET, S3Service, s3_service

PLACES = S3Places({"adapters", "versioned"}, "s3://adapters/tenants/{tenant}/{name}")


@pytest.fixture(scope="session")
def service() -> Iterator[S3Service]:
    with s3_service() as service:
        service.create_bucket("adapters")
        service.create_bucket("versioned", versioned=True)
        service.create_bucket("secret")
        yield service


@pytest.fixture
def proxy(service: S3Service) -> Iterator[FaultyProxy]:
    with FaultyProxy(service.url) as proxy:
        yield proxy


def access(proxy: FaultyProxy, *, key: str = KEY, timeout_s: float = 10.0) -> S3Access:
    return S3Access(
        endpoint_url=proxy.url,
        region="us-east-1",
        access_key_id=key,
        secret_access_key=SECRET,
        timeout_s=timeout_s,
    )


@pytest_asyncio.fixture
async def resolver(proxy: FaultyProxy) -> AsyncIterator[S3Resolver]:
    resolver = S3Resolver(PLACES, access(proxy))
    yield resolver
    await resolver.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "bot")
