"""The direct way: Route admits, the client calls the worker itself, and the books balance."""

import asyncio

import grpc
import pytest

from protos.fleet.v1 import fleet_pb2 as fleet
from protos.quota.v1 import quota_pb2 as quota
from tests.integration.stack import ask_worker, direct_call
from tests.integration.test_generation import register

pytestmark = pytest.mark.processes


async def usage_until(client, reached, timeout_s: float = 10.0) -> quota.Usage:
    """The usage of acme once `reached` holds: a worker's word arrives a moment after its stream's end."""
    async with asyncio.timeout(timeout_s):
        while True:
            usage = await client.quotas.GetUsage(
                quota.GetUsageRequest(tenant="acme"), metadata=client.metadata
            )
            if reached(usage):
                return usage
            await asyncio.sleep(0.02)


async def code_of(asked) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asked
    return error.value.code()


async def test_a_direct_generation_is_the_oracles_and_its_use_is_settled(stack, tiny):
    async with stack.client() as client:
        adapter = await register(client, tiny, 0)
        routed = await client.route("acme/a0", [1, 2, 3], 20)
        assert (routed.worker_id, routed.adapter, routed.revision) == ("worker-0", "a0", 1)
        assert routed.digest == adapter.revisions[0].digest
        reserved = await usage_until(client, lambda usage: usage.concurrent_requests == 1)
        assert reserved.completion_tokens == 0
        answer = await ask_worker(routed, [1, 2, 3], max_tokens=12)
        assert answer.started.digest == routed.digest
        assert answer.started.request_id.startswith(routed.request_id)
        assert answer.token_ids == tiny.oracle.greedy([1, 2, 3], tiny.source(0), 12)
        usage = await usage_until(client, lambda usage: usage.concurrent_requests == 0)
        assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (1, 3, 12)


async def test_a_grant_is_good_for_one_request_within_its_limits(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        used = await client.route("acme/a0", [1], 5)
        await ask_worker(used, [1], max_tokens=5)
        refused = grpc.StatusCode.PERMISSION_DENIED
        assert await code_of(ask_worker(used, [1], max_tokens=5)) is refused, "used before"
        routed = await client.route("acme/a0", [1], 5)
        assert await code_of(ask_worker(routed, [1], max_tokens=6)) is refused, "more tokens"
        routed = await client.route("acme/a0", [1], 5)
        assert await code_of(ask_worker(routed, [1], max_tokens=3, n=2)) is refused, "over all choices"
        routed = await client.route("acme/a0", [1], 5)
        assert await code_of(ask_worker(routed, [1, 2], max_tokens=5)) is refused, "a longer prompt"
        routed.grant = routed.grant[:-4] + "AAAA"
        assert await code_of(ask_worker(routed, [1], max_tokens=5)) is refused, "another signature"
        # What was refused is over: only the first used anything.
        usage = await usage_until(client, lambda usage: usage.concurrent_requests == 0)
        assert (usage.requests, usage.completion_tokens) == (4, 5)


async def test_a_worker_that_restarted_refuses_the_grants_of_before(stack, tiny):
    async with stack.client() as client:
        used = await client.route("tiny-llama", [1], 5)
        await ask_worker(used, [1], max_tokens=5)
        stack.workers[0].kill()
        stack.workers[0].start()
        again = await client.worker_until(
            lambda worker: worker.state == fleet.WORKER_STATE_READY and worker.address != used.address, 60
        )
        used.address = again.address
        assert await code_of(ask_worker(used, [1], max_tokens=5)) is grpc.StatusCode.PERMISSION_DENIED


async def test_a_client_that_leaves_pays_for_what_it_got(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        routed = await client.route("acme/a0", [1, 2], 200)
        async with grpc.aio.insecure_channel(routed.address) as channel:
            call = direct_call(channel, routed, [1, 2], max_tokens=200)
            async for response in call:
                if response.HasField("delta"):
                    break
            call.cancel()
        usage = await usage_until(client, lambda usage: usage.concurrent_requests == 0)
        assert usage.prompt_tokens == 2
        assert 0 < usage.completion_tokens < 200


async def test_direct_requests_are_admitted_under_the_same_limits(stack, tiny):
    async with stack.client() as client:
        limits = quota.Limits(concurrent_requests=2)
        await client.quotas.SetQuota(
            quota.SetQuotaRequest(quota=quota.Quota(tenant="acme", limits=limits)), metadata=client.metadata
        )
        await register(client, tiny, 0)
        first, _ = [await client.route("acme/a0", [1], 5) for _ in range(2)]
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await code_of(client.route("acme/a0", [1], 5)) is exhausted
        assert await code_of(client.generate("acme/a0", [1], max_tokens=1)) is exhausted
        await ask_worker(first, [1], max_tokens=5)
        await usage_until(client, lambda usage: usage.concurrent_requests == 1)
        await client.route("acme/a0", [1], 5)


async def test_a_use_that_could_not_be_told_is_settled_by_whoever_hears_of_it_first(stack, tiny):
    async with stack.client() as client:
        await register(client, tiny, 0)
        routed = await client.route("acme/a0", [1], 200)
        async with grpc.aio.insecure_channel(routed.address) as channel:
            call = direct_call(channel, routed, [1], max_tokens=100)
            async for response in call:
                if response.HasField("started"):
                    stack.control_planes[0].kill()
        stack.control_planes[0].start()
        stack.await_serving("readiness")
    async with stack.client() as client:
        usage = await usage_until(client, lambda usage: usage.concurrent_requests == 0)
        assert (usage.prompt_tokens, usage.completion_tokens) == (1, 100)
