"""What is remembered of adapters, and when it is read again."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.errors import NotFound, StaleRevision, StoreUnavailable
from control_plane.registry.changes import AdapterChange, ChangeKind
from control_plane.registry.lookups import Lookups
from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, AdapterKey, NewAdapter, PinTier
from control_plane.resolvers.chain import ResolverChain
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.placement.examples import adapter
from tests.control_plane.replica import eventually

BOT = adapter("bot", aliases=("helper",))
HELPER = AdapterKey("acme", "helper")


class Store:
    """A store of one adapter that can be away, and its changes."""

    def __init__(self) -> None:
        self.stored: Adapter | None = BOT
        self.reads = 0
        self.away = False
        self.now_s = 100.0
        self.reading: asyncio.Event | None = None  # a read waits for it, with what it has read
        self.changes: asyncio.Queue[AdapterChange | None] = asyncio.Queue()
        self.lookups = Lookups(self.find, outage_s=10.0, clock=lambda: self.now_s)

    async def find(self, key: AdapterKey) -> Adapter | None:
        self.reads += 1
        if self.away:
            raise StoreUnavailable("away")
        found = self.stored
        if self.reading is not None:
            await self.reading.wait()
        return found if found and key in (found.key, HELPER) else None

    async def follow(self, after: int) -> AsyncGenerator[AdapterChange, None]:
        while (change := await self.changes.get()) is not None:
            if change.adapter.resource_version > after:
                yield change
        raise StoreUnavailable("away")

    def change(self, changed: Adapter) -> None:
        self.stored = changed
        self.changes.put_nowait(AdapterChange(ChangeKind.MODIFIED, changed))

    @asynccontextmanager
    async def followed(self, version: int = 1) -> AsyncIterator[Lookups]:
        task = asyncio.create_task(self.lookups.follow(version, self.follow))
        await asyncio.sleep(0)
        try:
            yield self.lookups
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, StoreUnavailable):
                await task


async def test_without_following_every_look_up_is_read() -> None:
    store = Store()
    for _ in range(2):
        assert await store.lookups.find(BOT.key) == BOT
    assert store.reads == 2


async def test_followed_a_name_is_read_once_until_its_adapter_changes() -> None:
    store = Store()
    async with store.followed() as lookups:
        for key in (BOT.key, HELPER) * 3:
            assert await lookups.find(key) == BOT
        assert store.reads == 2
        pinned = replace(BOT, pin=PinTier.CPU, resource_version=2)
        store.change(pinned)
        await eventually(store.changes.empty)
        for key in (BOT.key, HELPER):
            assert await lookups.find(key) == pinned
        assert store.reads == 4


async def test_an_unknown_name_is_read_every_time() -> None:
    store = Store()
    async with store.followed() as lookups:
        for _ in range(2):
            assert await lookups.find(AdapterKey("acme", "other")) is None
        assert store.reads == 2


async def test_what_was_being_read_as_it_changed_is_not_remembered() -> None:
    store = Store()
    async with store.followed() as lookups:
        store.reading = asyncio.Event()
        reading = asyncio.create_task(lookups.find(BOT.key))
        await eventually(lambda: store.reads)
        newer = replace(BOT, resource_version=2)
        store.change(newer)
        await eventually(store.changes.empty)
        store.reading.set()
        assert await reading == BOT  # it was, when it was asked
        assert await lookups.find(BOT.key) == newer


async def test_an_outage_is_bridged_from_its_begin_for_so_long_and_no_longer() -> None:
    store = Store()
    async with store.followed() as lookups:
        await lookups.find(BOT.key)
        store.now_s += 100  # known to be true all the time
        store.away = True
        store.changes.put_nowait(None)
        await eventually(store.changes.empty)
        store.now_s += 10
        assert await lookups.find(BOT.key) == BOT
        store.now_s += 1
        with pytest.raises(StoreUnavailable):
            await lookups.find(BOT.key)


async def test_after_an_interruption_nothing_old_is_used_until_all_changes_have_come() -> None:
    store = Store()
    async with store.followed():
        await store.lookups.find(BOT.key)
    newer = replace(BOT, resource_version=2)
    store.stored = newer
    async with store.followed(version=2) as lookups:
        assert await lookups.find(BOT.key) == newer  # read: the change has not come yet
        store.change(newer)
        await eventually(store.changes.empty)
        reads = store.reads
        for _ in range(2):
            assert await lookups.find(BOT.key) == newer
        assert store.reads == reads + 1


async def test_when_changes_were_missed_for_good_everything_is_forgotten() -> None:
    store = Store()
    async with store.followed() as lookups:
        await lookups.find(BOT.key)

    async def trimmed(after: int) -> AsyncGenerator[AdapterChange, None]:
        raise StaleRevision("change", str(after), "is kept no longer")
        yield

    with pytest.raises(StaleRevision):
        await lookups.follow(9, trimmed)
    store.away = True
    with pytest.raises(StoreUnavailable):
        await lookups.find(BOT.key)


async def test_changes_of_this_replica_are_seen_at_once_and_of_others_soon(
    redis: Redis, resolvers: ResolverChain, root: Path
) -> None:
    one, other = (Registry(redis, resolvers) for _ in range(2))
    following = [asyncio.create_task(registry.follow()) for registry in (one, other)]
    key = AdapterKey("acme", "bot")
    await one.register(NewAdapter(key=key, source=str(write_adapter(root / "first"))))
    for registry in (one, other):
        assert (await registry.resolve("acme", "bot", ())).revision.number == 1  # type: ignore[union-attr]
    for number in (2, 3):
        source = str(write_adapter(root / f"next-{number}", fill=number))
        await one.publish(key, source)
        assert (await one.resolve("acme", "bot", ())).revision.number == number  # type: ignore[union-attr]

        async def seen(number: int = number) -> bool:
            return (await other.resolve("acme", "bot", ())).revision.number == number  # type: ignore[union-attr]

        await eventually(seen)
    await one.delete(key)
    with pytest.raises(NotFound):
        await one.resolve("acme", "bot", ())
    for task in following:
        task.cancel()
