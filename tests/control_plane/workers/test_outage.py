"""Redis is killed and comes back: the replica goes on by itself."""

import asyncio
import os
import signal
from pathlib import Path

import grpc
import pytest

from control_plane.errors import StoreUnavailable
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers.outage import ride_out
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import FakeWorker
from tests.control_plane.replica import Replica, details, eventually, ready, replica


async def test_a_replica_survives_a_killed_redis_and_plans_again(tmp_path: Path) -> None:
    directory = tmp_path / "valkey"
    first = EmbeddedValkey(directory)
    first.start()
    redis = connect(first.url)
    async with replica(redis, tmp_path) as control:
        worker: FakeWorker = control.worker()
        async with worker.run():
            await ready(control, "worker-0")
            digest = await _register(control, tmp_path)
            await eventually(lambda: digest in worker.held)
            os.kill(first.pid, signal.SIGKILL)
            await eventually(lambda: not control.plane.leadership.leads)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _register(control, tmp_path, "other")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "RetryInfo" in details(caught.value)
            with EmbeddedValkey(directory):
                await eventually(lambda: control.plane.leadership.leads)
                other = await _register(control, tmp_path, "other")
                await eventually(lambda: other in worker.held)
                assert not worker.left.is_set()  # its stream went on all the time
            await worker.stop()
    await redis.aclose()


async def _register(control: Replica, root: Path, name: str = "bot") -> str:
    message = pb.RegisterAdapterRequest(tenant="acme", name=name, source=str(write_adapter(root / name)))
    adapter = await control.registry.RegisterAdapter(message, metadata=control.as_("admin"))
    return str(adapter.revisions[0].digest)


async def test_work_that_fails_as_it_is_cancelled_is_not_begun_again() -> None:
    begun = asyncio.Event()
    starts = 0

    async def fails_when_cancelled() -> None:
        nonlocal starts
        starts += 1
        begun.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_unavailable_at_the_end())

    task = asyncio.create_task(ride_out("test", fails_when_cancelled))
    await begun.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert starts == 1


async def _unavailable_at_the_end() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        raise StoreUnavailable("Redis went away as well")
