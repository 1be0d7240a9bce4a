"""One real Valkey for the session, and a clean keyspace for each test."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    """A running server; without syncing, which on a busy disk takes longer than the tests."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey"), fsync="no") as server:
        yield server


@pytest_asyncio.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    """A client of an empty server."""
    client = connect(valkey.url)
    await client.flushdb()
    yield client
    await client.aclose()
