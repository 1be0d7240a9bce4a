"""Workers as Redis knows them, and what readers of their changes are told."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from control_plane.workers.directory import Directory, Renewal, Sighting
from control_plane.workers.types import WorkerState
from tests.control_plane.placement.examples import held, worker

LEASE_S = 60.0
ONE, OTHER = worker("one", session="s"), worker("other", session="s")


async def told(directory: Directory, position: str, count: int) -> list[Any]:
    async with aclosing(directory.changes(position)) as changes:
        async with asyncio.timeout(5.0):
            return [await anext(changes) for _ in range(count)]


async def test_a_reader_that_is_behind_reads_each_worker_once_as_it_is_now(redis: Redis) -> None:
    directory = Directory(redis)
    position = await directory.position()
    for each in (ONE, OTHER):
        await directory.hello(each, lease_s=LEASE_S)
    for name in ("a", "b", "c"):
        now = replace(ONE, status=worker("one", held(name)).status)
        assert await directory.report(now, changed=True, lease_s=LEASE_S)
        assert await directory.report(now, changed=False, lease_s=LEASE_S)
    await directory.intend("other", WorkerState.CORDONED)
    seen = await told(directory, position, 3)
    assert [type(one) for one in seen] == [Sighting, Renewal, Sighting]
    assert [held.key.name for held in seen[0].worker.status.adapters] == ["c"]
    assert seen[2].worker.state is WorkerState.CORDONED


async def test_a_reader_goes_on_after_what_it_has_read(redis: Redis) -> None:
    directory = Directory(redis)
    async with aclosing(directory.changes(await directory.position())) as changes:
        for each in (ONE, OTHER, ONE):
            await directory.hello(each, lease_s=LEASE_S)
            async with asyncio.timeout(5.0):
                change = await anext(changes)
            assert isinstance(change, Sighting)
            assert change.worker.worker_id == each.worker_id


async def test_an_older_session_no_longer_speaks_for_a_worker(redis: Redis) -> None:
    directory = Directory(redis)
    await directory.hello(ONE, lease_s=LEASE_S)
    await directory.hello(replace(ONE, session="newer"), lease_s=LEASE_S)
    assert not await directory.report(ONE, changed=True, lease_s=LEASE_S)
    await directory.lose(ONE)
    assert (await directory.read("one")).worker.live
