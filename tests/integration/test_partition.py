"""A peer that falls silent without a word (no FIN, no RST, only nothing): found out, and left behind.

Stopping a process is such a partition: its kernel still takes what is sent, and nothing comes back. The
bounds: a worker is lost with its lease (3 s), a stream to a silent peer ends by keepalive (5 s + 3 s).
"""

import asyncio
import signal
import time
from contextlib import contextmanager

import grpc
import pytest

from protos.fleet.v1 import fleet_pb2 as fleet
from protos.registry.v1 import registry_pb2 as registry
from tests.integration.pairs import WORKER_LEASE_S, leader_of, newest_term, two_of_each
from tests.integration.stack import collect
from tests.integration.test_generation import register

pytestmark = pytest.mark.processes
KEEPALIVE_S = 8.0
MARGIN_S = 4.0  # of a busy machine
RECONNECT_S = 4.0  # a silent address is left for the next after 2 s; back-off in between


@pytest.fixture
def pairs(tiny, tmp_path):
    with two_of_each(tiny, tmp_path) as running:
        yield running


@contextmanager
def silent(process):
    """Have a process say nothing for the time of the block."""
    process.signal(signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        process.signal(signal.SIGCONT)


async def first_delta(call) -> str:
    """Read up to the first tokens; the worker that computes them."""
    worker_id = ""
    async for response in call:
        worker_id = response.started.worker_id or worker_id
        if response.HasField("delta"):
            break
    return worker_id


async def ready(client) -> set[str]:
    return {one.worker_id for one in await client.workers() if one.state == fleet.WORKER_STATE_READY}


async def until_ready(client, count: int, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while len(await ready(client)) < count:
            await asyncio.sleep(0.05)


async def test_streams_of_a_silent_worker_end_and_the_other_worker_serves_on(pairs, tiny):
    async with pairs.client() as client:
        await register(client, tiny, 0)
        await until_ready(client, 2, 60)
        call = client.stream("acme/a0", [1, 2, 3], max_tokens=200)
        worker_id = await first_delta(call)
        with silent(pairs.workers[int(worker_id.removeprefix("worker-"))]) as since_s:
            hanging = asyncio.create_task(collect(call))
            await client.worker_until(
                lambda one: one.worker_id == worker_id and one.state == fleet.WORKER_STATE_LOST
            )
            lost_s = time.monotonic() - since_s
            assert lost_s < WORKER_LEASE_S + MARGIN_S
            answer = await client.generate("acme/a0", [1, 2, 3], max_tokens=20)
            assert answer.started.worker_id != worker_id
            assert answer.token_ids == tiny.oracle.greedy([1, 2, 3], tiny.source(0), 20)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await hanging
            ended_s = time.monotonic() - since_s
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
            assert ended_s < KEEPALIVE_S + MARGIN_S
        print(f"\nsilent worker: lost after {lost_s:.1f} s, its streams ended after {ended_s:.1f} s")
        # What it says in its old stream counts no more: it comes back with a new hello.
        await until_ready(client, 2, KEEPALIVE_S + RECONNECT_S + MARGIN_S)
        again = await asyncio.gather(
            *(client.generate("acme/a0", [4, number], max_tokens=10) for number in range(6))
        )
        for number, answer in enumerate(again):
            assert answer.token_ids == tiny.oracle.greedy([4, number], tiny.source(0), 10)


async def test_a_silent_leader_is_replaced_and_its_workers_go_to_its_successor(pairs, tiny):
    leader = leader_of(pairs)
    term, other = newest_term(leader), 1 - pairs.control_planes.index(leader)
    async with pairs.client(other) as client:
        await until_ready(client, 2, 60)
        with silent(leader) as since_s:
            await register(client, tiny, 1)  # the follower's own: admission and registry need no leader
            held = await client.worker_until(
                lambda one: any(adapter.name == "a1" for adapter in one.status.adapters), 30
            )
            led_s = time.monotonic() - since_s
            assert held.state == fleet.WORKER_STATE_READY
            assert newest_term(pairs.control_planes[other]) > term
            answer = await client.generate("acme/a1", [7], max_tokens=10)
            assert answer.token_ids == tiny.oracle.greedy([7], tiny.source(1), 10)
            # The one that had its stream with the silent replica dials again, and finds the other.
            await until_ready(client, 2, KEEPALIVE_S + RECONNECT_S + MARGIN_S)
            whole_s = time.monotonic() - since_s
        print(f"\nsilent leader: commands again after {led_s:.1f} s, both workers after {whole_s:.1f} s")
    async with pairs.client(1 - other) as client:
        # Awake again it leads no more; what it is asked to command goes out under its successor's term.
        await until_ready(client, 2, 30)
        request = registry.EvictAdapterRequest(tenant="acme", name="a1")
        answer = await client.registry.EvictAdapter(request, metadata=client.metadata, timeout=30)
        assert [report.ok for report in answer.reports] == [True]
        assert newest_term(leader) == term
