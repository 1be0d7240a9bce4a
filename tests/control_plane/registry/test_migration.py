"""Adapters that an older release stored: found again by everything that lists."""

import asyncio
from dataclasses import replace

from redis.asyncio import Redis

from control_plane.registry.migration import FORMAT, migrate
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey, RevisionState
from control_plane.store import keys
from tests.control_plane.placement.examples import revision
from tests.control_plane.registry.test_indexes import names, stored
from tests.control_plane.replica import eventually

SHARED = AdapterKey("acme", "bot")
RESOLVING = replace(revision("bot"), state=RevisionState.RESOLVING)


async def as_stored_before(redis: Redis) -> None:
    """Adapters without the indexes that came later, and without a word of the format."""
    await stored(redis, "acme", "bot", shared_with=("globex",), labels={"tier": "gold"})
    await stored(redis, "globex", "own")
    for index in ("lp:{registry}:shared:*", "lp:{registry}:label:*"):
        for key in await redis.keys(index):
            await redis.delete(key)
    await redis.delete(keys.REGISTRY_FORMAT)


async def test_adapters_stored_before_the_indexes_are_listed_again(redis: Redis, registry: Registry) -> None:
    await as_stored_before(redis)
    assert await names(registry, "globex") == ["own"]
    assert (await registry.list(None, labels={"tier": "gold"})).adapters == ()
    assert await migrate(redis) == 2
    assert await names(registry, "globex") == ["acme/bot", "own"]
    [found] = (await registry.list(None, labels={"tier": "gold"})).adapters
    assert found.key == SHARED


async def test_migrating_again_or_at_once_changes_nothing(redis: Redis, registry: Registry) -> None:
    await as_stored_before(redis)
    await asyncio.gather(*(migrate(redis) for _ in range(3)))
    version, indexed = await registry.version(), await redis.zrange(keys.registry_shared("globex"), 0, -1)
    assert await migrate(redis) == 0
    await redis.set(keys.REGISTRY_FORMAT, FORMAT - 1)  # cut off before its end
    assert await migrate(redis) == 2
    assert await registry.version() == version
    assert await redis.zrange(keys.registry_shared("globex"), 0, -1) == indexed == ["acme/bot"]


async def test_an_adapter_that_changes_meanwhile_is_indexed_as_it_is_then(
    redis: Redis, registry: Registry
) -> None:
    await as_stored_before(redis)
    await asyncio.gather(migrate(redis), registry.delete(SHARED))
    assert await names(registry, "globex") == ["own"]
    assert await redis.keys("lp:{registry}:label:*") == []


async def test_an_empty_registry_needs_nothing(redis: Redis) -> None:
    assert await migrate(redis) == 0
    assert await redis.get(keys.REGISTRY_FORMAT) == str(FORMAT)


async def test_what_an_older_release_left_resolving_is_read(redis: Redis, registry: Registry) -> None:
    await stored(redis, "acme", "bot", revisions=(RESOLVING,))
    await redis.delete(keys.REGISTRY_FORMAT)
    await migrate(redis)
    taking = asyncio.create_task(registry.take_over())
    await eventually(lambda: _has_failed(registry))  # it has no source
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)


async def _has_failed(registry: Registry) -> bool:
    return (await registry.get(SHARED)).current.state is RevisionState.FAILED
