"""Quotas hold across control-plane processes."""

import asyncio

import grpc
import pytest

from protos.access.v1 import access_pb2, access_pb2_grpc
from protos.quota.v1 import quota_pb2 as quota

pytestmark = pytest.mark.processes
LIMIT = 50


async def test_two_control_planes_admit_exactly_the_limit_of_200_concurrent_requests(stack, tiny):
    stack.add_control_plane()
    async with stack.client(0) as first, stack.client(1) as second:
        limits = quota.Limits(requests_per_minute=LIMIT)
        await first.quotas.SetQuota(
            quota.SetQuotaRequest(quota=quota.Quota(tenant="acme", limits=limits)), metadata=first.metadata
        )
        async with grpc.aio.insecure_channel(stack.endpoints[1]) as channel:
            answer = await access_pb2_grpc.AccessKeysStub(channel).CreateKey(
                access_pb2.CreateKeyRequest(tenant="acme", role=access_pb2.ROLE_INFERENCE),
                metadata=second.metadata,
            )
    async with stack.client(0, answer.secret) as first, stack.client(1, answer.secret) as second:

        async def one(client) -> grpc.StatusCode:
            try:
                await client.generate("tiny-llama", [1], max_tokens=1)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        codes = await asyncio.gather(*(one((first, second)[index % 2]) for index in range(200)))
    # A minute's refill of 50 is one every 1.2 s; the 200 take less than that.
    assert codes.count(grpc.StatusCode.OK) in {LIMIT, LIMIT + 1}
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 200 - codes.count(grpc.StatusCode.OK)
