"""States of a registration: what is visible while a source is read, and when it could not be."""

import asyncio
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.errors import NameTaken, NotFound, Refused, SourceUnavailable
from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, AdapterKey, NewAdapter, RevisionState
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.types import Resolved, ResolveRequest
from tests.control_plane.adapter_files import write_adapter

BOT = AdapterKey("acme", "bot")
BASE = "smollm2-135m-instruct"


class Slow:
    """A resolver that waits until it is told to go on."""

    name = "slow"

    def __init__(self, root: Path) -> None:
        self._files = FilesystemResolver([root])
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        self.asked.set()
        await self.go_on.wait()
        return await self._files.resolve(request)

    async def close(self) -> None:
        await self._files.close()


def new(root: Path, key: AdapterKey = BOT, fill: float = 1.0, **fields: object) -> NewAdapter:
    source = write_adapter(root / key.tenant / key.name, fill=fill)
    declared = NewAdapter(key=key, source=str(source), base_model=BASE)
    return replace(declared, **fields)  # type: ignore[arg-type]


async def state(registry: Registry, key: AdapterKey = BOT) -> RevisionState:
    return (await registry.get(key)).current.state


@pytest.fixture
def slow(root: Path) -> Slow:
    return Slow(root)


@pytest.fixture
def waiting(redis: Redis, slow: Slow) -> Registry:
    """Of which every source takes longer than a moment."""
    return Registry(redis, ResolverChain([slow], time.monotonic), slow_s=0.0)


async def resolving(registry: Registry) -> Adapter:
    while True:
        try:
            return await registry.get(BOT)
        except NotFound:
            await asyncio.sleep(0.001)


async def test_a_source_that_takes_long_is_resolving_then_ready(
    waiting: Registry, slow: Slow, root: Path
) -> None:
    registering = asyncio.create_task(waiting.register(new(root)))
    assert (await resolving(waiting)).current.state is RevisionState.RESOLVING
    with pytest.raises(SourceUnavailable, match="still read"):
        await waiting.resolve("acme", "bot", {BASE})
    assert [adapter async for adapter in waiting.visible("acme")] == []
    slow.go_on.set()
    stored = await registering
    assert stored.current.ready
    assert stored == await waiting.get(BOT)
    assert (await waiting.resolve("acme", "bot", {BASE})).revision == stored.current


async def test_a_registration_that_is_cut_off_has_failed(waiting: Registry, root: Path) -> None:
    registering = asyncio.create_task(waiting.register(new(root)))
    await resolving(waiting)
    registering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await registering
    assert await state(waiting) is RevisionState.FAILED


async def test_of_two_registrations_of_a_name_the_first_that_is_read_wins_and_the_other_hears_of_it(
    waiting: Registry, slow: Slow, root: Path, registry: Registry
) -> None:
    first = asyncio.create_task(waiting.register(new(root)))
    await resolving(waiting)
    other = await registry.register(new(root, fill=2.0, labels={"who": "second"}))
    slow.go_on.set()
    with pytest.raises(NameTaken):
        await first
    assert await registry.get(BOT) == other


async def test_a_source_that_is_refused_fails_visibly_and_a_publish_tries_again(
    registry: Registry, root: Path
) -> None:
    declared = new(root)
    config = root / "acme" / "bot" / "adapter_config.json"
    kept = config.read_text()
    config.unlink()
    with pytest.raises(Refused, match=r"has no adapter_config.json"):
        await registry.register(declared)
    failed = (await registry.get(BOT)).current
    assert failed.state is RevisionState.FAILED
    assert "has no adapter_config.json" in failed.failure
    with pytest.raises(Refused, match="publish it again"):
        await registry.resolve("acme", "bot", {BASE})
    config.write_text(kept)
    published = await registry.publish(BOT)
    assert (published.current_revision, [one.state for one in published.revisions]) == (
        2,
        [RevisionState.READY],
    )
    assert (await registry.resolve("acme", "bot", {BASE})).revision == published.current


async def test_a_publish_that_fails_again_says_why_now(registry: Registry, root: Path) -> None:
    declared = new(root)
    (root / "acme" / "bot" / "adapter_config.json").unlink()
    with pytest.raises(Refused):
        await registry.register(declared)
    shutil.rmtree(root / "acme")
    with pytest.raises(NotFound, match="source"):
        await registry.publish(BOT)
    assert "source" in (await registry.get(BOT)).current.failure


async def test_registering_a_failed_name_again_replaces_it(registry: Registry, root: Path) -> None:
    with pytest.raises(NotFound, match="source"):
        await registry.register(NewAdapter(key=BOT, source=str(root / "acme" / "nothing"), base_model=BASE))
    assert await state(registry) is RevisionState.FAILED
    stored = await registry.register(new(root))
    assert (stored.current_revision, stored.current.state) == (1, RevisionState.READY)


async def test_a_failed_registration_leaves_a_ready_adapter_as_it_was(registry: Registry, root: Path) -> None:
    stored = await registry.register(new(root))
    with pytest.raises(NotFound, match="source"):
        await registry.register(NewAdapter(key=BOT, source=str(root / "acme" / "nothing"), base_model=BASE))
    assert await registry.get(BOT) == stored


async def test_a_source_that_was_never_allowed_is_not_read_by_a_publish_without_a_source(
    registry: Registry, root: Path
) -> None:
    theirs = write_adapter(root / "globex" / "secret")
    with pytest.raises((Refused, NotFound)):
        await registry.register(NewAdapter(key=BOT, source=str(theirs), base_model=BASE, confined=True))
    assert await state(registry) is RevisionState.FAILED
    with pytest.raises((Refused, NotFound)):
        await registry.publish(BOT, confined=True)
