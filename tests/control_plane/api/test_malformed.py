"""Bytes that are no message: refused like any other bad request, and only to who may call."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from protos.fleet.v1 import fleet_pb2 as fleet
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.replica import Replica, details, replica

NO_MESSAGE = b"\x0a\xff\xff"  # a text longer than what follows
METHODS = (
    ("/loraplane.registry.v1.AdapterRegistry/GetAdapter", "admin"),
    ("/loraplane.inference.v1.Inference/Generate", "acme-user"),
    ("/loraplane.inference.v1.Inference/Tokenize", "acme-user"),
    ("/loraplane.sync.v1.WorkerSync/Sync", "worker"),
)


async def _error(
    control: Replica, method: str, metadata: Any, messages: tuple[bytes, ...] = (NO_MESSAGE,)
) -> grpc.aio.AioRpcError:
    call = control.channel.stream_stream(method, None, None)(iter(messages), metadata=metadata, timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _read_all(call)
    return caught.value


async def _read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        continue


@pytest.mark.parametrize(("method", "who"), METHODS)
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    redis: Redis, tmp_path: Path, method: str, who: str
) -> None:
    async with replica(redis, tmp_path) as control:
        error = await _error(control, method, control.as_(who))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(error)["BadRequest"].field_violations[0].field == "request"
        assert "DecodeError" not in (error.details() or "")


@pytest.mark.parametrize(("method", "who"), METHODS)
async def test_a_stranger_is_not_told_that_its_bytes_are_no_message(
    redis: Redis, tmp_path: Path, method: str, who: str
) -> None:
    async with replica(redis, tmp_path) as control:
        assert (await _error(control, method, ())).code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_worker_that_sends_no_message_after_its_hello_is_told_so(
    redis: Redis, tmp_path: Path
) -> None:
    # The status comes while the first lease is being written: one of them must wait.
    hello = sync.WorkerMessage(hello=sync.Hello(worker_id="w", capacity=fleet.Capacity(max_loras=1)))
    async with replica(redis, tmp_path) as control:
        for _ in range(20):
            messages = (hello.SerializeToString(), NO_MESSAGE)
            error = await _error(
                control, "/loraplane.sync.v1.WorkerSync/Sync", control.as_("worker"), messages
            )
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_method_that_is_listed_but_not_served_is_unimplemented(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        error = await _error(control, "/grpc.health.v1.Health/List", (), (b"",))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
