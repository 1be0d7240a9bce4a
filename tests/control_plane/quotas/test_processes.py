"""Two control-plane processes on one Valkey admit together exactly what the limit says."""

import asyncio
import multiprocessing
from multiprocessing.synchronize import Barrier

import pytest
from redis.asyncio import Redis

from control_plane.errors import QuotaExceeded
from control_plane.quotas.service import Quotas
from control_plane.quotas.types import Limits, Quota
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey


async def _reserve_many(url: str, process: int, count: int, barrier: Barrier) -> int:
    client = connect(url)
    quotas = Quotas(client, Limits(), reservation_ttl_s=60.0)
    await client.ping()

    async def reserve(number: int) -> bool:
        try:
            await quotas.reserve("acme", f"{process}-{number}", 10)
        except QuotaExceeded:
            return False
        return True

    await asyncio.to_thread(barrier.wait, 60.0)
    admitted = await asyncio.gather(*(reserve(number) for number in range(count)))
    await client.aclose()
    return sum(admitted)


def _process(
    url: str, process: int, count: int, barrier: Barrier, results: "multiprocessing.Queue[int]"
) -> None:
    results.put(asyncio.run(_reserve_many(url, process, count, barrier)))


@pytest.mark.processes
async def test_200_concurrent_reserves_of_two_processes_against_a_limit_of_50_admit_exactly_50(
    valkey: EmbeddedValkey, redis: Redis
) -> None:
    await Quotas(redis, Limits(), 60.0).set(Quota(tenant="acme", limits=Limits(concurrent_requests=50)))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_process, args=(valkey.url, number, 100, barrier, results))
        for number in (0, 1)
    ]
    for process in processes:
        process.start()
    admitted = [await asyncio.to_thread(results.get, True, 60.0) for _ in processes]
    for process in processes:
        process.join()
    assert sum(admitted) == 50
