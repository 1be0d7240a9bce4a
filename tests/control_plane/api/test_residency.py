"""Slots and cold loads of a tenant through the relay, and what happens to requests without Redis."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from control_plane.quotas.types import Limits, Quota
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from protos.access.v1 import access_pb2
from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, FakeWorker, Script
from tests.control_plane.replica import Replica, details, eventually, ready, replica


async def register(control: Replica, root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        source = str(write_adapter(root / "acme" / name, fill=1.0 + number))
        await control.registry.RegisterAdapter(
            pb.RegisterAdapterRequest(name=name, source=source), metadata=control.as_("acme")
        )


async def generate(control: Replica, model: str) -> None:
    message = inference_pb2.GenerateRequest(model=model, text="hello")
    async for _ in control.inference.Generate(message, metadata=control.as_("acme-user")):
        pass


async def limit(control: Replica, **limits: int) -> None:
    await control.plane.quotas.set(Quota(tenant="acme", limits=Limits(**limits)))


def in_slots(worker: FakeWorker) -> set[str]:
    return {held.name for held in worker.held.values() if held.tier == inference_pb2.TIER_SLOT}


async def usage(control: Replica) -> Any:
    return await control.quotas.GetUsage(quota_pb2.GetUsageRequest(), metadata=control.as_("acme"))


async def reported(control: Replica, slots: int) -> None:
    async def is_so() -> bool:
        return bool((await usage(control)).resident_slots == slots)

    await eventually(is_so)


async def test_the_adapter_idle_longest_makes_room_for_the_next(redis: Redis, tmp_path: Path) -> None:
    script = Script(fills_slots=True)
    async with (
        replica(redis, tmp_path, num_holders=0) as control,
        control.worker(script=script).run() as worker,
    ):
        await ready(control, "worker-0")
        await register(control, tmp_path, "a", "b")
        await limit(control, resident_slots=1)
        await generate(control, "a")
        await reported(control, 1)
        await generate(control, "b")
        assert in_slots(worker) == {"b"}
        assert worker.verbs() == ["evict"]


async def test_a_slot_that_a_request_uses_is_not_taken(redis: Redis, tmp_path: Path) -> None:
    script = Script(fills_slots=True, hold_after=1)
    async with (
        replica(redis, tmp_path, num_holders=0) as control,
        control.worker(script=script).run() as worker,
    ):
        await ready(control, "worker-0")
        await register(control, tmp_path, "a", "b")
        await limit(control, resident_slots=1)
        running = asyncio.create_task(generate(control, "a"))
        await worker.streaming.wait()
        await reported(control, 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(control, "b")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = details(caught.value)
        assert "resident_slots = 1" in found["QuotaFailure"].violations[0].description
        assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1000
        assert in_slots(worker) == {"a"}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_cold_loads_over_the_limit_are_refused_and_shown_in_usage(redis: Redis, tmp_path: Path) -> None:
    script = Script(fills_slots=True)
    async with replica(redis, tmp_path, num_holders=0) as control, control.worker(script=script).run():
        await ready(control, "worker-0")
        await register(control, tmp_path, "a", "b")
        await limit(control, cold_loads_per_minute=1)
        await generate(control, "a")
        await reported(control, 1)
        await generate(control, "a")  # warm
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(control, "b")
        assert "cold_loads_per_minute = 1" in details(caught.value)["QuotaFailure"].violations[0].description
        used = await usage(control)
        assert (used.cold_loads, used.remaining_cold_loads, used.resident_slots) == (1, 0, 1)
        assert (used.slot_bytes, used.cpu_bytes, used.disk_bytes) == (100, 10, 1)


async def test_without_redis_requests_and_admin_calls_are_refused_unless_told_otherwise(
    tmp_path: Path,
) -> None:
    with EmbeddedValkey(tmp_path / "valkey", fsync="no") as valkey:
        async with replica(connect(valkey.url), tmp_path) as control, control.worker().run() as worker:
            await ready(control, "worker-0")
            await register(control, tmp_path, "a")
            # What is known of key and adapter is in memory from here on.
            await generate(control, BASE_MODEL)
            await generate(control, "a")
            valkey.stop()
            acme, admin = control.as_("acme"), control.as_("admin")
            of_acme = quota_pb2.Quota(tenant="acme")
            for call in (
                *(generate(control, model) for model in (BASE_MODEL, "a")),
                control.inference.Route(
                    inference_pb2.RouteRequest(model="a", prompt_tokens=5), metadata=control.as_("acme-user")
                ),
                control.registry.GetAdapter(pb.GetAdapterRequest(name="a"), metadata=acme),
                control.registry.DeleteAdapter(pb.DeleteAdapterRequest(name="a"), metadata=acme),
                control.registry.EvictAdapter(pb.EvictAdapterRequest(name="a"), metadata=acme),
                control.quotas.SetQuota(quota_pb2.SetQuotaRequest(quota=of_acme), metadata=admin),
                control.quotas.GetUsage(quota_pb2.GetUsageRequest(), metadata=acme),
                control.access.ListKeys(access_pb2.ListKeysRequest(), metadata=admin),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                assert "RetryInfo" in details(caught.value)
            assert len(worker.requests) == 2
            valkey.start()


async def test_without_redis_the_local_share_goes_on_longer_than_any_lease(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "valkey", fsync="no") as valkey:
        redis = connect(valkey.url)
        async with (
            replica(redis, tmp_path, store_loss_requests_per_minute=3) as control,
            control.worker().run() as worker,
        ):
            await ready(control, "worker-0")
            await register(control, tmp_path, "a")
            await generate(control, "a")
            valkey.stop()
            session = control.plane.sessions.find("worker-0")
            assert session is not None
            await eventually(lambda: session.unwritten)
            for _ in range(3):
                await generate(control, "a")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(control, "a")
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            with pytest.raises(grpc.aio.AioRpcError) as admin:
                await control.registry.GetAdapter(
                    pb.GetAdapterRequest(name="a"), metadata=control.as_("acme")
                )
            assert admin.value.code() is grpc.StatusCode.UNAVAILABLE
            assert control.plane.fleet.get("worker-0").live
            valkey.start()
            await eventually(lambda: not session.unwritten)
            assert not worker.left.is_set()  # one stream all the time
            await generate(control, "a")
