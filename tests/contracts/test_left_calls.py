"""A call whose client leaves while its servicer still answers: an end, not a bug of ours."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from structlog.testing import capture_logs

from control_plane.access.audit import AuditLog
from control_plane.access.keys import Keys
from control_plane.api.auditing import Auditor
from control_plane.api.interceptors import CallInterceptor
from control_plane.metrics.replica import ReplicaMetrics
from data_plane.api.interceptors import ErrorInterceptor


class Late(health.aio.HealthServicer):
    """Answers when its client has left."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.refused = asyncio.Event(), asyncio.Event()

    async def Check(self, request, context):  # type: ignore[no-untyped-def]
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await context.abort(grpc.StatusCode.NOT_FOUND)
            except grpc.aio.InternalError:
                self.refused.set()
                raise


@asynccontextmanager
async def serving(
    interceptor: grpc.aio.ServerInterceptor, servicer: Late
) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    server = grpc.aio.server(interceptors=(interceptor,))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(1)


@pytest.mark.parametrize("plane", ["control plane", "worker"])
async def test_what_grpc_refuses_of_a_call_that_was_left_is_no_unforeseen_error(
    redis: Redis, plane: str
) -> None:
    interceptor = ErrorInterceptor()
    if plane == "control plane":
        keys, auditor = Keys(redis), Auditor(AuditLog(redis))
        interceptor = CallInterceptor(keys, auditor, ReplicaMetrics().calls, allow_adapter_changes=False)
    late = Late()
    with capture_logs() as lines:
        async with serving(interceptor, late) as stub, asyncio.timeout(10):
            call = stub.Check(health_pb2.HealthCheckRequest())
            await late.entered.wait()
            call.cancel()
            await late.refused.wait()
    assert not [line for line in lines if line["log_level"] == "error"]
