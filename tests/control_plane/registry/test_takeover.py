"""A replica dies while it reads a source: another one reads it, and RESOLVING ends."""

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.registry.readings import Readings, Terms
from control_plane.registry.service import Registry
from control_plane.registry.takeover import MAX_READERS
from control_plane.registry.types import AdapterKey, NewAdapter, PinTier, RevisionState
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.types import Resolved, ResolveRequest
from control_plane.store import keys
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.registry.test_states import BASE, BOT, Slow, new, resolving, state
from tests.control_plane.replica import eventually, replica

LEASE_S = 0.3


class Counting:
    """Counts how many read at once, and in all; reads when it is told to."""

    name = "counting"

    def __init__(self, root: Path) -> None:
        self._files = FilesystemResolver([root])
        self.go_on = asyncio.Event()
        self.now, self.most, self.all = 0, 0, 0

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        self.now, self.all = self.now + 1, self.all + 1
        self.most = max(self.most, self.now)
        try:
            await self.go_on.wait()
            return await self._files.resolve(request)
        finally:
            self.now -= 1

    async def close(self) -> None:
        await self._files.close()


class Hanging(Slow):
    """Says across processes that it was asked, and never answers."""

    def __init__(self, root: Path, asked: Event) -> None:
        super().__init__(root)
        self._told = asked

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        self._told.set()
        return await super().resolve(request)


def registry_of(redis: Redis, resolver: Counting | Slow) -> Registry:
    chain = ResolverChain([resolver], time.monotonic)
    return Registry(redis, chain, slow_s=0.0, reader_lease_s=LEASE_S)


@asynccontextmanager
async def taking_over(*registries: Registry) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(registry.take_over()) for registry in registries]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _register(url: str, root: Path, declared: NewAdapter, asked: Event) -> None:
    registry = registry_of(connect(url), Hanging(root, asked))
    asyncio.run(registry.register(declared))


async def killed_while_reading(
    valkey: EmbeddedValkey, registry: Registry, root: Path, new: NewAdapter
) -> None:
    """A process that reads a source, and kill -9 once that shows."""
    context = multiprocessing.get_context("spawn")
    asked = context.Event()
    process = context.Process(target=_register, args=(valkey.url, root, new, asked))
    process.start()
    assert await asyncio.to_thread(asked.wait, 60.0)
    assert (await resolving(registry)).current.state is RevisionState.RESOLVING
    os.kill(process.pid or 0, signal.SIGKILL)
    await asyncio.to_thread(process.join)


async def readings(redis: Redis) -> int:
    return int(await redis.hlen(keys.REGISTRY_RESOLVING))


@pytest.mark.processes
async def test_of_two_replicas_one_is_killed_while_it_reads_and_the_other_ends_it_ready(
    valkey: EmbeddedValkey, redis: Redis, root: Path
) -> None:
    declared = new(root, labels={"tier": "gold"}, aliases=("b",))
    async with replica(redis, root) as survivor:
        await killed_while_reading(valkey, survivor.plane.registry, root, declared)
        assert await state(survivor.plane.registry) is RevisionState.RESOLVING
        await eventually(lambda: _is(survivor.plane.registry, RevisionState.READY))
        stored = await survivor.plane.registry.get(AdapterKey("acme", "b"))
        assert (stored.key, stored.labels, stored.current.number) == (BOT, {"tier": "gold"}, 1)
        assert stored == await survivor.plane.registry.register(declared)  # its caller's retry is a repeat
        await eventually(lambda: _none(redis))


@pytest.mark.processes
async def test_what_the_successor_finds_wrong_with_the_source_is_the_reason_it_failed_for(
    valkey: EmbeddedValkey, redis: Redis, root: Path
) -> None:
    survivor = registry_of(redis, Slow(root))
    survivor_source = new(root, confined=True, expected_digest="sha256:" + "0" * 64)
    await killed_while_reading(valkey, survivor, root, survivor_source)
    counting = Counting(root)
    counting.go_on.set()
    async with taking_over(other := registry_of(redis, counting)):
        await eventually(lambda: _is(other, RevisionState.FAILED))
    assert "not the expected sha256:000" in (await other.get(BOT)).current.failure
    assert await readings(redis) == 0


async def test_exactly_one_of_many_replicas_takes_a_reading_up(redis: Redis, root: Path) -> None:
    await abandoned(redis, root)
    counting = Counting(root)
    replicas = [registry_of(redis, counting) for _ in range(4)]
    async with taking_over(*replicas):
        await eventually(lambda: counting.now)
        await asyncio.sleep(3 * LEASE_S)  # leases in which another would have begun
        assert (counting.most, counting.all) == (1, 1)
        counting.go_on.set()
        await eventually(lambda: _is(replicas[0], RevisionState.READY))


async def test_a_reader_that_lives_keeps_its_reading_however_long_it_takes(redis: Redis, root: Path) -> None:
    slow, counting = Slow(root), Counting(root)
    first, other = registry_of(redis, slow), registry_of(redis, counting)
    registering = asyncio.create_task(first.register(new(root)))
    await resolving(first)
    async with taking_over(other):
        await asyncio.sleep(3 * LEASE_S)
        assert counting.all == 0
        slow.go_on.set()
        assert (await registering).current.ready
    assert await readings(redis) == 0


async def test_a_reader_that_lost_its_lease_stops_and_stores_nothing(redis: Redis, root: Path) -> None:
    slow = Slow(root)
    first = registry_of(redis, slow)
    registering = asyncio.create_task(first.register(new(root)))
    await resolving(first)
    # As if it had been away for longer than its lease, and another had begun.
    await redis.hset(keys.REGISTRY_RESOLVING, str(BOT), '{"reader": "another", "until_ms": 99999999999999}')
    with pytest.raises(Exception, match="another replica reads"):
        await registering
    assert await state(first) is RevisionState.RESOLVING
    assert await readings(redis) == 1


async def test_a_source_that_kills_its_readers_is_not_read_for_ever(redis: Redis, root: Path) -> None:
    await abandoned(redis, root, Terms(attempts=MAX_READERS))
    counting = Counting(root)
    async with taking_over(other := registry_of(redis, counting)):
        await eventually(lambda: _is(other, RevisionState.FAILED))
    assert counting.all == 0
    assert f"each of {MAX_READERS} replicas" in (await other.get(BOT)).current.failure


async def test_what_was_pinned_while_it_was_read_is_pinned_when_it_is_ready(redis: Redis, root: Path) -> None:
    await abandoned(redis, root)
    counting = Counting(root)
    async with taking_over(other := registry_of(redis, counting)):
        await eventually(lambda: counting.now)
        await other.pin(BOT, PinTier.CPU)
        counting.go_on.set()
        await eventually(lambda: _is(other, RevisionState.READY))
    assert (await other.get(BOT)).pin is PinTier.CPU


async def test_a_reading_whose_registration_ended_otherwise_is_dropped(redis: Redis, root: Path) -> None:
    ready = await registry_of(redis, counting := Counting(root)).register(await _go(counting, new(root)))
    before = counting.all
    await Readings(redis, lease_s=0.001, clock=time.monotonic).begin(BOT, Terms())
    async with taking_over(other := registry_of(redis, counting)):
        await eventually(lambda: _none(redis))
    assert counting.all == before
    assert await other.get(BOT) == ready


async def test_a_name_that_was_only_asked_for_is_gone_when_its_source_fails(redis: Redis, root: Path) -> None:
    slow = Slow(root)
    chain = ResolverChain([slow], time.monotonic)
    registry = Registry(redis, chain, slow_s=0.0, resolve_on_request=True)
    write_adapter(root / "acme" / "bot")
    asking = asyncio.create_task(registry.resolve("acme", "bot", {BASE}))
    await resolving(registry)
    (root / "acme" / "bot" / "adapter_config.json").unlink()
    slow.go_on.set()
    with pytest.raises(Exception, match=r"adapter_config.json|not found"):
        await asking
    assert (await registry.list("acme")).adapters == ()
    assert await readings(redis) == 0


async def abandoned(redis: Redis, root: Path, terms: Terms | None = None) -> None:
    """A registration whose reader is gone: announced, its lease over."""
    registering = asyncio.create_task(registry_of(redis, Slow(root)).register(new(root)))
    registry = registry_of(redis, Slow(root))
    pending = await resolving(registry)
    registering.cancel()
    await asyncio.gather(registering, return_exceptions=True)
    await registry.delete(BOT)
    await redis.delete(keys.REGISTRY_RESOLVING)
    await registry._committing.decide(BOT, lambda stored: pending)
    await Readings(redis, lease_s=0.001, clock=time.monotonic).begin(BOT, terms or Terms())


async def _go(counting: Counting, declared: NewAdapter) -> NewAdapter:
    counting.go_on.set()
    return declared


async def _is(registry: Registry, wanted: RevisionState) -> bool:
    return await state(registry) is wanted


async def _none(redis: Redis) -> bool:
    return await readings(redis) == 0
