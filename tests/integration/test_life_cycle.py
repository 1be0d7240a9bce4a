"""Cancel, kill, restart, publish, evict: nothing is lost, nothing is mixed up."""

import asyncio
import time

import grpc
import pytest

from protos.fleet.v1 import fleet_pb2 as fleet
from protos.inference.v1 import inference_pb2 as inference
from protos.quota.v1 import quota_pb2 as quota
from protos.registry.v1 import registry_pb2 as registry
from tests.control_plane.replica import eventually
from tests.integration.stack import collect
from tests.integration.test_generation import register

pytestmark = pytest.mark.processes


async def test_a_client_that_leaves_frees_blocks_and_lease_within_a_step(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        idle = await client.worker_until(lambda worker: worker.status.free_blocks > 0)
        call = client.stream("acme/a0", [1, 2, 3], max_tokens=200)
        async for response in call:
            if response.HasField("delta"):
                break
        busy = await client.worker_until(lambda worker: worker.status.running_requests == 1)
        assert busy.status.free_blocks < idle.status.free_blocks
        assert [adapter.leases for adapter in busy.status.adapters] == [1]
        call.cancel()
        free = await client.worker_until(lambda worker: worker.status.running_requests == 0)
        # Blocks of a finished prefix stay cached but count as free: they can be taken at once.
        assert free.status.free_blocks == idle.status.free_blocks
        assert [adapter.leases for adapter in free.status.adapters] == [0]
        # 200 tokens take some 100 steps: what freed it was the cancellation, not the end.
        assert free.status.computed_tokens < 200


async def test_a_killed_worker_fails_its_streams_and_is_filled_again(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        call = client.stream("acme/a0", [1, 2, 3], max_tokens=200)
        async for response in call:
            if response.HasField("delta"):
                break
        stack.workers[0].kill()
        killed_s = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in call:
                pass
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        await client.worker_until(lambda worker: worker.state != fleet.WORKER_STATE_READY)
        assert time.monotonic() - killed_s < 3.0, "noticed within the lease of 2 s and a margin"
        stack.workers[0].start()
        # Filled from desired state, before any request asks for it.
        refilled = await client.worker_until(
            lambda worker: worker.state == fleet.WORKER_STATE_READY and len(worker.status.adapters) == 1,
            timeout_s=60,
        )
        assert refilled.status.adapters[0].name == "a0"
        answer = await client.generate("acme/a0", [1, 2, 3], max_tokens=5)
        assert answer.token_ids == tiny.oracle.greedy([1, 2, 3], tiny.source(0), 5)


async def test_a_new_revision_leaves_running_streams_on_the_old(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        call = client.stream("acme/a0", [1, 2, 3], max_tokens=200)
        old = asyncio.create_task(collect(call))
        await client.worker_until(lambda worker: worker.status.running_requests == 1)
        published = await client.registry.PublishRevision(
            registry.PublishRevisionRequest(
                tenant="acme",
                name="a0",
                source=str(tiny.source(0, 2)),
                reload_policy=registry.RELOAD_POLICY_FINISH_RUNNING,
            ),
            metadata=client.metadata,
        )
        new = await client.generate("acme/a0", [1, 2, 3], max_tokens=20)
        running = await old
        assert (running.started.revision, new.started.revision) == (1, 2)
        assert new.started.digest == published.revisions[-1].digest != running.started.digest
        assert running.token_ids == tiny.oracle.greedy([1, 2, 3], tiny.source(0), 200)
        assert new.token_ids == tiny.oracle.greedy([1, 2, 3], tiny.source(0, 2), 20)


async def test_eviction_gives_the_bytes_back_and_the_next_request_loads_again(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        await client.generate("acme/a0", [1], max_tokens=1)
        full = await client.worker_until(lambda worker: worker.status.slot_bytes_used > 0)
        reports = await client.registry.EvictAdapter(
            registry.EvictAdapterRequest(tenant="acme", name="a0"), metadata=client.metadata
        )
        assert [report.ok for report in reports.reports] == [True]
        empty = await client.worker_until(lambda worker: not worker.status.adapters)
        assert empty.status.slot_bytes_used == empty.status.cpu_bytes_used == 0
        used = full.status.slot_bytes_used + full.status.cpu_bytes_used
        assert reports.reports[0].size_bytes == used > 0
        again = await client.generate("acme/a0", [1], max_tokens=1)
        assert again.started.tier == inference.TIER_SOURCE
        assert again.started.load_s > 0


async def test_deleting_an_adapter_under_a_stream_lets_it_finish_then_gives_name_and_bytes_back(stack, tiny):
    named = {"tenant": "acme", "name": "a0"}

    async def registered_bytes(client) -> int:
        usage = await client.quotas.GetUsage(quota.GetUsageRequest(tenant="acme"), metadata=client.metadata)
        return usage.adapter_bytes

    async with stack.client() as client:
        await register(client, tiny, 0)
        held_bytes = await registered_bytes(client)
        running = asyncio.create_task(collect(client.stream("acme/a0", [1, 2, 3], max_tokens=200)))
        await client.worker_until(lambda worker: worker.status.running_requests == 1)
        deleted = await client.registry.DeleteAdapter(
            registry.DeleteAdapterRequest(**named), metadata=client.metadata
        )
        assert deleted.adapter.HasField("delete_time")
        shown = await client.registry.GetAdapter(
            registry.GetAdapterRequest(**named), metadata=client.metadata
        )
        assert shown.HasField("delete_time")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.generate("acme/a0", [1], max_tokens=1)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        assert await registered_bytes(client) == held_bytes > 0
        assert not running.done(), "all of this was under the stream"
        finished = await running
        assert finished.token_ids == tiny.oracle.greedy([1, 2, 3], tiny.source(0), 200)
        empty = await client.worker_until(lambda worker: not worker.status.adapters)
        assert empty.status.slot_bytes_used == empty.status.cpu_bytes_used == 0

        async def is_gone() -> bool:
            page = await client.registry.ListAdapters(
                registry.ListAdaptersRequest(tenant="acme"), metadata=client.metadata
            )
            return not page.adapters

        await eventually(is_gone)
        assert await registered_bytes(client) == 0
        await register(client, tiny, 0)


async def test_acknowledged_adapters_and_quotas_survive_kill_9_of_control_plane_and_valkey(stack, tiny):
    async with stack.client() as client:
        for number in range(4):
            await register(client, tiny, number)
    stack.control_planes[0].kill()
    stack.valkey.kill()
    stack.valkey.start()
    stack.control_planes[0].start()
    stack.await_serving("readiness")
    async with stack.client() as client:
        page = await client.registry.ListAdapters(registry.ListAdaptersRequest(), metadata=client.metadata)
        assert [adapter.name for adapter in page.adapters] == ["a0", "a1", "a2", "a3"]
        answer = await client.generate("acme/a3", [9, 8], max_tokens=4)
        assert answer.token_ids == tiny.oracle.greedy([9, 8], tiny.source(3), 4)
