"""Leadership: one leader, higher tokens, no overlap."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis

from control_plane.workers import keys
from control_plane.workers.leader import Leadership
from tests.control_plane.replica import eventually

LEASE_S = 0.3


class Term:
    """Records the terms it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.running = 0

    async def __call__(self, token: int) -> None:
        self.tokens.append(token)
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1


@asynccontextmanager
async def campaigning(redis: Redis, name: str, term: Term) -> AsyncIterator[Leadership]:
    leadership = Leadership(redis, replica=name, lease_s=LEASE_S, clock=time.monotonic)
    task = asyncio.create_task(leadership.run(term))
    try:
        await leadership.known()
        yield leadership
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_only_one_leads_and_the_next_has_a_higher_token(redis: Redis) -> None:
    first_term, second_term = Term(), Term()
    async with campaigning(redis, "second", second_term) as second:
        await eventually(lambda: second.leads)
        async with campaigning(redis, "first", first_term) as first:
            assert not first.leads
            assert first.token == second.token == 1
            assert first_term.tokens == []
    async with campaigning(redis, "first", first_term) as first:
        assert first.leads
        assert first.token == 2


async def test_a_term_ends_when_another_took_the_lease(redis: Redis) -> None:
    term = Term()
    async with campaigning(redis, "first", term) as first:
        await eventually(lambda: term.running)
        await redis.set(keys.LEADER, "usurper", px=200)
        await redis.incr(keys.FENCING_TOKEN)
        await eventually(lambda: not term.running)
        assert not first.leads
        await eventually(lambda: term.running)  # the usurper's lease ran out
        assert term.tokens == [1, 3]


async def test_a_leader_that_cannot_renew_stops_before_its_lease_is_over(redis: Redis) -> None:
    now = time.monotonic()
    clock = {"s": now}
    leadership = Leadership(redis, replica="first", lease_s=LEASE_S, clock=lambda: clock["s"])
    task = asyncio.create_task(leadership.run(Term()))
    await leadership.known()
    assert leadership.leads
    clock["s"] += LEASE_S  # no renewal was confirmed in this time
    assert not leadership.leads
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_leaving_gives_the_lease_back(redis: Redis) -> None:
    async with campaigning(redis, "first", Term()) as first:
        assert first.leads
    assert await redis.get(keys.LEADER) is None
