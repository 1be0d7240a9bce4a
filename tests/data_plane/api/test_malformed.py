"""Bytes that are no message, at a worker's server: refused like any other bad request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from data_plane.api.interceptors import ErrorInterceptor

CHECK = "/grpc.health.v1.Health/Check"
LIST = "/grpc.health.v1.Health/List"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@asynccontextmanager
async def serving() -> AsyncIterator[grpc.aio.Channel]:
    """A server with a unary and a streaming method."""
    server = grpc.aio.server(interceptors=(ErrorInterceptor(),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    reflection.enable_server_reflection((reflection.SERVICE_NAME,), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.mark.parametrize("method", [CHECK, REFLECT])
async def test_bytes_that_are_no_message_are_an_invalid_argument(method: str):
    async with serving() as channel:
        call = channel.stream_stream(method, None, None)(iter([b"\x0a\xff\xff"]), timeout=10)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "request: '0affff' begins no message of the method's type"


async def test_a_method_that_is_listed_but_not_served_is_unimplemented():
    async with serving() as channel:
        call = channel.unary_unary(LIST, None, None)(b"", timeout=10)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
