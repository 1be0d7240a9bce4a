"""The stream of changes: ordered, complete, resumable."""

import asyncio
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.errors import StaleRevision
from control_plane.registry.changes import AdapterChange, ChangeKind
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey, NewAdapter, PinTier
from control_plane.store import keys
from tests.control_plane.adapter_files import write_adapter

BOT = AdapterKey("acme", "bot")


async def take(registry: Registry, after: int, count: int) -> list[AdapterChange]:
    seen: list[AdapterChange] = []
    async with aclosing(registry.changes(after)) as stream:
        async for change in stream:
            seen.append(change)
            if len(seen) == count:
                break
    return seen


async def register(registry: Registry, root: Path) -> None:
    await registry.register(NewAdapter(key=BOT, source=str(write_adapter(root / "bot"))))


async def test_changes_come_in_order_and_can_be_resumed(registry: Registry, root: Path) -> None:
    await register(registry, root)
    pinned = await registry.pin(BOT, PinTier.CPU)
    await registry.delete(BOT)
    all_changes = await take(registry, 0, 3)
    assert [change.kind for change in all_changes] == [
        ChangeKind.ADDED,
        ChangeKind.MODIFIED,
        ChangeKind.DELETED,
    ]
    assert all_changes[1].adapter == pinned
    versions = [change.adapter.resource_version for change in all_changes]
    assert all(later == earlier + 1 for earlier, later in pairwise(versions))
    assert versions[-1] == await registry.version()
    assert await take(registry, versions[0], 2) == all_changes[1:]


async def test_a_waiting_reader_gets_a_change_when_it_happens(registry: Registry, root: Path) -> None:
    waiting = asyncio.create_task(take(registry, 0, 1))
    await asyncio.sleep(0)
    await register(registry, root)
    async with asyncio.timeout(5.0):
        [change] = await waiting
    assert change.adapter == await registry.get(BOT)


async def test_a_reader_behind_the_kept_changes_is_told(registry: Registry, redis: Redis, root: Path) -> None:
    await register(registry, root)
    for tier in (PinTier.CPU, PinTier.SLOT):
        await registry.pin(BOT, tier)
    await redis.xtrim(keys.REGISTRY_CHANGES, maxlen=1, approximate=False)
    with pytest.raises(StaleRevision, match="is kept no longer; the next kept one is 3"):
        await take(registry, 0, 1)
    assert len(await take(registry, 2, 1)) == 1


async def test_readers_give_their_connections_back(registry: Registry, redis: Redis, root: Path) -> None:
    await register(registry, root)
    before = len(await redis.client_list())
    for _ in range(5):
        await take(registry, 0, 1)
    async with asyncio.timeout(5.0):
        # The server notices a close a moment later, and tells nobody.
        while len(await redis.client_list()) > before:
            await asyncio.sleep(0.01)
