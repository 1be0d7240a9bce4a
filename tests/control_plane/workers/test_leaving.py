"""When a draining worker is told that it may leave, on a clock of the test's."""

from dataclasses import replace

from redis.asyncio import Redis

from control_plane.workers.directory import Directory
from control_plane.workers.fleet import Fleet
from control_plane.workers.leaving import PATIENCE_S, Leaving
from control_plane.workers.types import WorkerState
from tests.control_plane.placement.examples import held, worker

OLD = worker("old", held("bot"))


async def test_a_drain_that_cannot_hand_over_ends_with_its_patience(redis: Redis) -> None:
    now_s = 0.0
    fleet = Fleet(Directory(redis), lambda: now_s)
    leaving = Leaving(fleet, lambda: now_s)
    fleet.heard(OLD, 1000.0)
    fleet.heard(worker("heir"), 1000.0)
    assert not leaving.may_leave("old")  # nobody drains it
    fleet.heard(replace(OLD, state=WorkerState.DRAINING), 1000.0)
    assert not leaving.may_leave("old")
    now_s = PATIENCE_S
    assert leaving.may_leave("old")


async def test_a_drain_ends_when_another_holds_what_it_holds(redis: Redis) -> None:
    fleet = Fleet(Directory(redis), lambda: 0.0)
    leaving = Leaving(fleet, lambda: 0.0)
    fleet.heard(replace(OLD, state=WorkerState.DRAINING), 1000.0)
    fleet.heard(worker("heir", held("bot")), 1000.0)
    assert leaving.may_leave("old")
    assert not leaving.may_leave("unknown")
