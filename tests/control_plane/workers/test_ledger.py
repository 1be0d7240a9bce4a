"""The ledger: which commands are given again, and when."""

from dataclasses import replace

from redis.asyncio import Redis

from control_plane.placement import commands
from control_plane.registry.types import AdapterKey
from control_plane.workers.ledger import Ledger
from control_plane.workers.types import Outcome
from tests.control_plane.placement.examples import adapter, worker

W = worker("w")
BOT = adapter("bot")
LOAD = commands.load("w", BOT)
DONE, BUSY = Outcome(ok=True), Outcome(ok=False, reason="busy")
NEVER = Outcome(ok=False, reason="rank", terminal=True)


def at(redis: Redis, now: float = 100.0) -> Ledger:
    return Ledger(redis, lambda: now)


async def test_what_was_done_or_refused_for_good_is_not_given_again(redis: Redis) -> None:
    for outcome in (DONE, NEVER):
        ledger = at(redis)
        assert ledger.retry_at_s(W, LOAD) == 0
        await ledger.record(W, LOAD, outcome)
        assert ledger.retry_at_s(W, LOAD) is None


async def test_a_new_generation_or_instance_is_given_again(redis: Redis) -> None:
    ledger = at(redis)
    await ledger.record(W, LOAD, NEVER)
    assert ledger.retry_at_s(W, replace(LOAD, generation=2)) == 0
    assert ledger.retry_at_s(replace(W, instance_id="w-2"), LOAD) == 0


async def test_refusals_back_off_exponentially_up_to_a_minute(redis: Redis) -> None:
    ledger, delays = at(redis), []
    for _ in range(8):
        await ledger.record(W, LOAD, BUSY)
        retry_at_s = ledger.retry_at_s(W, LOAD)
        assert retry_at_s is not None
        delays.append(retry_at_s - 100.0)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_an_eviction_that_was_acknowledged_is_repeated_only_after_a_while(redis: Redis) -> None:
    ledger = at(redis)
    eviction = commands.evict("w", BOT, "sha256:bot-1")
    await ledger.record(W, eviction, DONE)
    assert ledger.retry_at_s(W, eviction) == 105.0


async def test_the_next_leader_reads_what_this_one_wrote(redis: Redis) -> None:
    await at(redis).record(W, LOAD, NEVER)
    other = at(redis)
    await other.load(BOT.key)
    assert other.retry_at_s(W, LOAD) is None


async def test_problems_are_the_refusals_and_go_with_the_next_success(redis: Redis) -> None:
    ledger = at(redis)
    await ledger.record(W, LOAD, BUSY)
    [(problem,)] = await at(redis).problems([BOT.key])
    assert (problem.worker_id, problem.outcome.reason) == ("w", "busy")
    await ledger.record(W, LOAD, DONE)
    assert await at(redis).problems([BOT.key, AdapterKey("acme", "unheard-of")]) == [(), ()]
    assert await at(redis).problems([]) == []


async def test_problems_of_several_come_in_the_order_asked_for(redis: Redis) -> None:
    other = adapter("other")
    await at(redis).record(W, commands.load("w", other), NEVER)
    first, (problem,), last = await at(redis).problems([BOT.key, other.key, BOT.key])
    assert first == last == ()
    assert problem.outcome.reason == "rank"


async def test_loads_of_different_revisions_have_their_own_answers(redis: Redis) -> None:
    two = adapter("bot", current=2)
    first, second = (commands.load("w", two, revision) for revision in two.revisions)
    await at(redis).record(W, first, NEVER)
    later = at(redis)
    await later.load(two.key)
    assert later.retry_at_s(W, first) is None
    assert later.retry_at_s(W, second) == 0
