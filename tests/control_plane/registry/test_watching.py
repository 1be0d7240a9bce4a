"""Watches: one tenant's adapters cost one tenant's reads, and any number of watchers one connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from redis.asyncio import Redis

from control_plane.errors import StaleRevision
from control_plane.registry.changes import AdapterChange, ChangeKind
from control_plane.registry.service import Registry
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import AdapterKey, PinTier
from control_plane.registry.watching import KEPT, Recent, Watched
from control_plane.store import keys
from tests.control_plane.placement.examples import adapter
from tests.control_plane.replica import eventually

OTHERS = 1_000  # two pages
BOT = AdapterKey("acme", "bot-0")


async def register(redis: Redis, tenant: str, count: int) -> None:
    store = AdapterStore(redis)
    for number in range(count):
        await store.commit(None, adapter(f"bot-{number}", key=AdapterKey(tenant, f"bot-{number}")))


async def take(registry: Registry, tenant: str | None, after: int | None, count: int) -> list[Watched]:
    seen: list[Watched] = []
    async with aclosing(registry.watch(tenant, after)) as watched:
        async for one in watched:
            seen.append(one)
            if len(seen) == count:
                break
    return seen


@asynccontextmanager
async def followed(registry: Registry, redis: Redis) -> AsyncIterator[None]:
    """While the registry follows its changes, as a replica does; its reader is connected."""
    following = asyncio.create_task(registry.follow())
    await eventually(lambda: blocked(redis))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def blocked(redis: Redis) -> int:
    info = await redis.info("clients")
    return int(info["blocked_clients"])


async def pages(redis: Redis) -> int:
    """How many pages of an index Redis has served, by its own count."""
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_zrange", {"calls": 0})["calls"])


async def test_watching_a_tenant_reads_no_other_tenants_adapters(registry: Registry, redis: Redis) -> None:
    await register(redis, "aaa", OTHERS)
    await register(redis, "acme", 2)
    before = await pages(redis)
    seen = await take(registry, "acme", None, 2)
    assert [str(one.change.adapter.key) for one in seen] == ["acme/bot-0", "acme/bot-1"]
    assert await pages(redis) - before == 1


async def test_a_watch_says_where_to_go_on_when_the_present_state_is_whole(
    registry: Registry, redis: Redis
) -> None:
    await register(redis, "acme", 3)
    await registry.pin(BOT, PinTier.CPU)  # now the newest, and the first by name
    seen = await take(registry, "acme", None, 3)
    assert [one.resume_version for one in seen] == [None, None, 4]
    await registry.pin(BOT, PinTier.SLOT)
    [change] = await take(registry, "acme", seen[-1].resume_version, 1)
    assert (change.change.kind, change.resume_version) == (ChangeKind.MODIFIED, 5)


async def test_many_watchers_share_one_reader_and_all_see_every_change(
    registry: Registry, redis: Redis
) -> None:
    await register(redis, "acme", 1)
    async with followed(registry, redis):
        waiting = [asyncio.create_task(take(registry, "acme", 1, 2)) for _ in range(100)]
        await asyncio.sleep(0)
        before = len(await redis.client_list())
        for tier in (PinTier.CPU, PinTier.SLOT):
            await registry.pin(BOT, tier)
        async with asyncio.timeout(5):
            seen = await asyncio.gather(*waiting)
        assert len(await redis.client_list()) <= before + 1
        assert await blocked(redis) == 1
    assert {tuple(one.resume_version for one in watched) for watched in seen} == {(2, 3)}


async def test_a_watcher_far_behind_what_is_in_memory_reads_it_from_redis(
    registry: Registry, redis: Redis
) -> None:
    await register(redis, "acme", 1)
    async with followed(registry, redis):
        for number in range(KEPT + 10):
            await registry.pin(BOT, PinTier.CPU if number % 2 else PinTier.SLOT)
        seen = await take(registry, None, 0, KEPT + 11)
    assert [one.resume_version for one in seen] == list(range(1, KEPT + 12))


async def test_a_watcher_behind_the_kept_changes_is_told(registry: Registry, redis: Redis) -> None:
    await register(redis, "acme", 3)
    await redis.xtrim(keys.REGISTRY_CHANGES, maxlen=1, approximate=False)
    with pytest.raises(StaleRevision):
        await take(registry, "acme", 0, 1)


async def test_when_the_reader_ends_watchers_read_for_themselves(registry: Registry, redis: Redis) -> None:
    await register(redis, "acme", 1)
    async with followed(registry, redis):
        waiting = asyncio.create_task(take(registry, "acme", 1, 1))
        await asyncio.sleep(0)
    await registry.pin(BOT, PinTier.CPU)
    async with asyncio.timeout(5):
        assert [one.resume_version for one in await waiting] == [2]


async def test_what_is_in_memory_is_never_mistaken_for_what_is_not() -> None:
    recent = Recent(kept=2)
    assert recent.after(0) is None, "nobody listens"

    async def three() -> AsyncIterator[AdapterChange]:
        for version in (11, 12, 13):
            yield AdapterChange(ChangeKind.ADDED, adapter("bot", resource_version=version))

    async with aclosing(recent.hear(three(), 10)) as heard:
        async for _ in heard:
            found = {version: recent.after(version) for version in range(9, 15)}
    # As of the last change:
    assert found[9] is None
    assert found[10] is None, "11 was pushed out"
    assert [one.adapter.resource_version for one in found[11]] == [12, 13]
    assert [one.adapter.resource_version for one in found[12]] == [13]
    assert found[13] == found[14] == ()
    assert recent.after(13) is None, "the stream has ended"
