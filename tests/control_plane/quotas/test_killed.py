"""Three replicas with 200 callers each on one Valkey, one of them killed in the middle: exactly the limit."""

import asyncio
import multiprocessing
import os
import signal
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import pytest
from redis.asyncio import Redis

from control_plane.errors import QuotaExceeded
from control_plane.quotas.service import Quotas
from control_plane.quotas.types import Limits, Quota
from control_plane.store import keys
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey

NUM_REPLICAS, NUM_CALLERS, LIMIT = 3, 200, 300
KILLED_AFTER = 40  # answers of the replica that is killed


async def _callers(url: str, replica: int, barrier: Barrier, answers: "Queue[tuple[int, bool]]") -> None:
    client = connect(url)
    quotas = Quotas(client, Limits(), reservation_ttl_s=60.0)
    await client.ping()

    async def call(number: int) -> None:
        try:
            await quotas.reserve("acme", f"{replica}-{number}", 10)
        except QuotaExceeded:
            answers.put((replica, False))
        else:
            answers.put((replica, True))

    for _ in ("all are there", "the time was taken"):
        await asyncio.to_thread(barrier.wait, 60.0)
    await asyncio.gather(*(call(number) for number in range(NUM_CALLERS)))
    await client.aclose()


def _replica(url: str, replica: int, barrier: Barrier, answers: "Queue[tuple[int, bool]]") -> None:
    asyncio.run(_callers(url, replica, barrier, answers))


@pytest.mark.processes
@pytest.mark.parametrize("limit", ["concurrent_requests", "requests_per_minute", "tokens_per_minute"])
async def test_killing_a_replica_in_the_middle_over_admits_nobody(
    valkey: EmbeddedValkey, redis: Redis, limit: str
) -> None:
    maximum = LIMIT * 10 if limit == "tokens_per_minute" else LIMIT
    await Quotas(redis, Limits(), 60.0).set(Quota(tenant="acme", limits=Limits(**{limit: maximum})))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(NUM_REPLICAS + 1)
    # A queue each: a process killed while it writes leaves its queue locked for ever.
    queues: list[Queue[tuple[int, bool]]] = [context.Queue() for _ in range(NUM_REPLICAS)]
    processes = [
        context.Process(target=_replica, args=(valkey.url, number, barrier, queues[number]))
        for number in range(NUM_REPLICAS)
    ]
    for process in processes:
        process.start()
    await asyncio.to_thread(barrier.wait, 60.0)
    began_s = await _now_s(redis)  # not before: what their start takes refills the limit
    await asyncio.to_thread(barrier.wait, 60.0)
    told = [await asyncio.to_thread(queues[0].get, True, 60.0) for _ in range(KILLED_AFTER)]
    os.kill(processes[0].pid or 0, signal.SIGKILL)
    for queue in queues[1:]:
        told += [await asyncio.to_thread(queue.get, True, 60.0) for _ in range(NUM_CALLERS)]
    for process in processes:
        process.join()
    # What was admitted is what Redis counted: an answer may have died with its replica, no more.
    counted = int(await redis.hget(keys.quota_totals("acme"), "requests") or 0)
    in_flight = await redis.zcard(keys.quota_scope("acme")[2])
    refilled = 0.0 if limit == "concurrent_requests" else (await _now_s(redis) - began_s) * LIMIT / 60
    assert counted == in_flight
    assert LIMIT <= counted <= LIMIT + refilled
    assert sum(admitted for _, admitted in told) <= counted
    refused = int(await redis.hget(keys.quota_totals("acme"), "rejected_requests") or 0)
    assert refused > 0


async def _now_s(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return seconds + microseconds / 1e6
