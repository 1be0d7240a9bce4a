"""Workers as Redis knows them, and what readers of their changes are told."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from control_plane.workers import keys, records
from control_plane.workers.directory import Directory
from control_plane.workers.fleet import Fleet
from control_plane.workers.records import Changed, Renewal, Sighting
from control_plane.workers.types import StatusChange, WorkerState
from tests.control_plane.placement.examples import held, worker
from tests.control_plane.replica import eventually

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
        assert await directory.report(now, None, lease_s=LEASE_S, whole=True)
        assert await directory.report(now, None, lease_s=LEASE_S)
    await directory.intend("other", WorkerState.CORDONED)
    seen = await told(directory, position, 3)
    assert [type(one) for one in seen] == [Sighting, Renewal, Sighting]
    assert [held.key.name for held in seen[0].worker.status.adapters] == ["c"]
    assert seen[2].worker.state is WorkerState.CORDONED


async def test_a_change_is_told_as_one_and_read_with_the_record(redis: Redis) -> None:
    directory = Directory(redis)
    before = worker("one", held("a"), held("b"), session="s")
    await directory.hello(before, lease_s=LEASE_S)
    await directory.report(before, None, lease_s=LEASE_S, whole=True)
    known, position = await directory.read("one"), await directory.position()
    change = StatusChange(
        worker("one", held("c", leases=2), status={"running_requests": 1}).status, ("sha256:a-1",)
    )
    after = replace(before, status=before.status.after(change))
    await directory.report(after, change, lease_s=LEASE_S)
    (seen,) = await told(directory, position, 1)
    assert isinstance(seen, Changed)
    assert (seen.change, seen.version) == (change, known.version + 1)
    assert (
        known.worker.status.after(seen.change) == (await directory.read("one")).worker.status == after.status
    )
    assert set(after.status.held) == {"sha256:b-1", "sha256:c-1"}


async def test_of_what_comes_with_a_record_only_later_changes_are_told_again(redis: Redis) -> None:
    directory = Directory(redis)
    await directory.hello(ONE, lease_s=LEASE_S)
    position = await directory.position()
    for name in ("a", "b"):
        await directory.report(ONE, StatusChange(worker("one", held(name)).status), lease_s=LEASE_S)
    await directory.report(ONE, None, lease_s=LEASE_S, whole=True)
    for name in ("c", "d"):
        await directory.report(ONE, StatusChange(worker("one", held(name)).status), lease_s=LEASE_S)
    record, *changes = await told(directory, position, 3)
    assert record.version == changes[-1].version  # read as it is by now
    assert [list(one.change.status.held) for one in changes] == [["sha256:c-1"], ["sha256:d-1"]]


async def test_a_reader_that_missed_a_change_reads_the_record(redis: Redis) -> None:
    directory = Directory(redis)
    await directory.hello(ONE, lease_s=LEASE_S)
    fleet = Fleet(directory, asyncio.get_running_loop().time)
    following = asyncio.create_task(fleet.run())
    await fleet.known()
    # A change that no stream has any more: only the record knows.
    await directory.report(ONE, StatusChange(worker("one", held("a")).status), lease_s=LEASE_S)
    await eventually(lambda: fleet.get("one").status.held)
    await redis.hincrby(keys.worker("one"), "version", 1)
    lost = worker("one", held("b"))
    await redis.hset(keys.held("one"), mapping={"sha256:b-1": str(records.whole(lost)[5])})
    await directory.report(ONE, StatusChange(worker("one", held("c")).status), lease_s=LEASE_S)
    await eventually(lambda: len(fleet.get("one").status.held) == 3)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


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
    assert not await directory.report(ONE, None, lease_s=LEASE_S, whole=True)
    await directory.lose(ONE)
    assert (await directory.read("one")).worker.live
