"""The services over a real server: health, reflection, registry, quotas, fleet, keys."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from redis.asyncio import Redis

from control_plane.api.server import SERVICES
from protos.access.v1 import access_pb2
from protos.fleet.v1 import fleet_pb2
from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL
from tests.control_plane.replica import Replica, details, eventually, ready, replica

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(control: Replica, service: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(control.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def becomes(control: Replica, service: str, status: Any) -> None:
    async def is_so() -> bool:
        return bool(await health(control, service) == status)

    await eventually(is_so)


async def test_readiness_needs_a_live_worker_and_liveness_does_not(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        await becomes(control, "loraplane.fleet.v1.Fleet", SERVING)
        assert await health(control, "liveness") == SERVING
        assert await health(control, "readiness") == NOT_SERVING
        assert await health(control, "loraplane.inference.v1.Inference") == NOT_SERVING
        async with control.worker().run():
            await becomes(control, "readiness", SERVING)
            await becomes(control, "loraplane.inference.v1.Inference", SERVING)
        await becomes(control, "readiness", NOT_SERVING)
        assert await health(control, "loraplane.fleet.v1.Fleet") == SERVING


async def test_an_unknown_service_has_no_health(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(control, "nonsense")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_every_service_without_a_key(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(control.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = await stub.ServerReflectionInfo(iter([request])).read()
        assert {service.name for service in answer.list_services_response.service} >= set(SERVICES)


async def test_registered_adapter_comes_back_whole(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        request = pb.RegisterAdapterRequest(
            name="bot",
            source=str(write_adapter(tmp_path / "acme" / "bot")),
            labels={"team": "x"},
            aliases=["b"],
        )
        made = await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
        again = await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
        got = await control.registry.GetAdapter(pb.GetAdapterRequest(name="b"), metadata=control.as_("acme"))
        assert made == again == got
        assert (made.tenant, made.base_model, made.current_revision) == ("acme", BASE_MODEL, 1)
        assert made.revisions[0].state == pb.REVISION_STATE_READY
        assert made.create_time.seconds > 0
        page = await control.registry.ListAdapters(
            pb.ListAdaptersRequest(labels={"team": "x"}), metadata=control.as_("admin")
        )
        assert [adapter.name for adapter in page.adapters] == ["bot"]


async def test_a_tenant_admin_registers_and_publishes_only_what_is_kept_for_its_tenant(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        own, others = (
            write_adapter(tmp_path / "acme" / "bot"),
            write_adapter(tmp_path / "globex" / "bot", fill=2.0),
        )
        register = pb.RegisterAdapterRequest(name="bot", source=str(others))
        await refused(control.registry.RegisterAdapter(register, metadata=control.as_("acme")))
        register.source = str(own)
        await control.registry.RegisterAdapter(register, metadata=control.as_("acme"))
        publish = pb.PublishRevisionRequest(tenant="acme", name="bot", source=str(others))
        await refused(control.registry.PublishRevision(publish, metadata=control.as_("acme")))
        # An administrator may: it is trusted with every tenant's weights.
        published = await control.registry.PublishRevision(publish, metadata=control.as_("admin"))
        assert published.current_revision == 2


async def refused(call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_watch_shows_the_present_state_then_changes(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        for name in ("one", "two"):
            request = pb.RegisterAdapterRequest(
                name=name, source=str(write_adapter(tmp_path / "acme" / name))
            )
            await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
            if name == "one":
                call = control.registry.WatchAdapters(pb.WatchAdaptersRequest(), metadata=control.as_("acme"))
                first = await call.read()
        await control.registry.DeleteAdapter(
            pb.DeleteAdapterRequest(name="one"), metadata=control.as_("acme")
        )
        events = [first, await call.read(), await call.read()]
        assert [(event.type, event.adapter.name) for event in events] == [
            (pb.AdapterEvent.TYPE_ADDED, "one"),
            (pb.AdapterEvent.TYPE_ADDED, "two"),
            (pb.AdapterEvent.TYPE_DELETED, "one"),
        ]
        call.cancel()


async def test_quota_keeps_absent_apart_from_zero(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        quota = quota_pb2.Quota(tenant="acme", limits=quota_pb2.Limits(requests_per_minute=0))
        await control.quotas.SetQuota(quota_pb2.SetQuotaRequest(quota=quota), metadata=control.as_("admin"))
        got = await control.quotas.GetQuota(quota_pb2.GetQuotaRequest(), metadata=control.as_("acme"))
        assert got == quota
        assert not got.limits.HasField("tokens_per_minute")
        listed = await control.quotas.ListQuotas(quota_pb2.ListQuotasRequest(), metadata=control.as_("admin"))
        assert list(listed.quotas) == [quota]
        await control.quotas.DeleteQuota(
            quota_pb2.DeleteQuotaRequest(tenant="acme"), metadata=control.as_("admin")
        )
        got = await control.quotas.GetQuota(quota_pb2.GetQuotaRequest(), metadata=control.as_("acme"))
        assert not got.limits.HasField("requests_per_minute")


async def test_usage_counts_what_workers_hold(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        request = pb.RegisterAdapterRequest(name="bot", source=str(write_adapter(tmp_path / "acme" / "bot")))
        adapter = await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
        await eventually(lambda: control.plane.fleet.get("worker-0").status.held)
        usage = await control.quotas.GetUsage(quota_pb2.GetUsageRequest(), metadata=control.as_("acme"))
        assert usage.registered_adapters == 1
        assert usage.cpu_bytes == usage.adapter_bytes == adapter.revisions[0].size_bytes


async def test_cordoned_worker_is_shown_and_comes_back(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        states = []
        for uncordon in (False, True):
            request = fleet_pb2.CordonWorkerRequest(worker_id="worker-0", uncordon=uncordon)
            await control.fleet.CordonWorker(request, metadata=control.as_("admin"))
            listed = await control.fleet.ListWorkers(
                fleet_pb2.ListWorkersRequest(), metadata=control.as_("admin")
            )
            states.append(listed.workers[0].state)
        assert states == [fleet_pb2.WORKER_STATE_CORDONED, fleet_pb2.WORKER_STATE_READY]


@pytest.mark.parametrize("undo", [False, True])
async def test_a_drain_cannot_be_taken_back_by_a_cordon_or_its_undoing(
    redis: Redis, tmp_path: Path, undo: bool
) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        drain = fleet_pb2.DrainWorkerRequest(worker_id="worker-0")
        await control.fleet.DrainWorker(drain, metadata=control.as_("admin"))
        cordon = fleet_pb2.CordonWorkerRequest(worker_id="worker-0", uncordon=undo)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.fleet.CordonWorker(cordon, metadata=control.as_("admin"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details(caught.value)["ResourceInfo"].resource_name == "worker-0"
        assert "start it again" in str(caught.value.details())
        shown = await control.fleet.DrainWorker(drain, metadata=control.as_("admin"))  # again: the same
        assert shown.state == fleet_pb2.WORKER_STATE_DRAINING


async def test_watch_workers_shows_a_worker_come_and_go(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        call = control.fleet.WatchWorkers(fleet_pb2.WatchWorkersRequest(), metadata=control.as_("admin"))
        async with control.worker().run():
            assert (await call.read()).worker.state == fleet_pb2.WORKER_STATE_READY
        async with asyncio.timeout(5):
            while (await call.read()).worker.state != fleet_pb2.WORKER_STATE_LOST:
                pass
        call.cancel()


async def test_unknown_worker_is_not_found(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        for call in (control.fleet.GetWorker, control.fleet.DrainWorker):
            request_type = {"GetWorker": fleet_pb2.GetWorkerRequest}.get(
                "GetWorker" if call is control.fleet.GetWorker else "", fleet_pb2.DrainWorkerRequest
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request_type(worker_id="nobody"), metadata=control.as_("admin"))
            assert details(caught.value)["ResourceInfo"].resource_name == "nobody"


async def test_tenant_admin_manages_inference_keys_of_its_tenant_alone(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        made = await control.access.CreateKey(
            access_pb2.CreateKeyRequest(role=access_pb2.ROLE_INFERENCE, description="app"),
            metadata=control.as_("acme"),
        )
        assert (made.key.tenant, made.key.description) == ("acme", "app")
        assert (await control.plane.keys.authenticate(made.secret)).tenant == "acme"
        listed = await control.access.ListKeys(access_pb2.ListKeysRequest(), metadata=control.as_("acme"))
        assert {key.tenant for key in listed.keys} == {"acme"}
        assert made.key.key_id in {key.key_id for key in listed.keys}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.access.RevokeKey(
                access_pb2.RevokeKeyRequest(key_id=made.key.key_id), metadata=control.as_("globex")
            )
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.access.CreateKey(
                access_pb2.CreateKeyRequest(role=access_pb2.ROLE_TENANT_ADMIN), metadata=control.as_("acme")
            )
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await control.access.RevokeKey(
            access_pb2.RevokeKeyRequest(key_id=made.key.key_id), metadata=control.as_("acme")
        )


async def test_sharing_takes_effect_on_the_next_request_and_is_audited(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        source = str(write_adapter(tmp_path / "acme" / "bot"))
        await control.registry.RegisterAdapter(
            pb.RegisterAdapterRequest(name="bot", source=source), metadata=control.as_("acme")
        )
        wanted = inference_pb2.RouteRequest(model="acme/bot", prompt_tokens=5)

        async def code() -> grpc.StatusCode:
            try:
                await control.inference.Route(wanted, metadata=control.as_("globex-user"))
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        assert await code() is grpc.StatusCode.NOT_FOUND
        share = pb.ShareAdapterRequest(name="bot", with_tenants=["globex"])
        shared = await control.registry.ShareAdapter(share, metadata=control.as_("acme"))
        assert (list(shared.shared_with), await code()) == (["globex"], grpc.StatusCode.OK)
        unshare = pb.UnshareAdapterRequest(name="bot", with_tenants=["globex"])
        shared = await control.registry.UnshareAdapter(unshare, metadata=control.as_("acme"))
        assert (list(shared.shared_with), await code()) == ([], grpc.StatusCode.NOT_FOUND)
        audit = await control.access.ListAuditEvents(
            access_pb2.ListAuditEventsRequest(), metadata=control.as_("admin")
        )
        told = [event.targets for event in audit.events if event.method.endswith("/ShareAdapter")]
        assert [list(targets) for targets in told] == [["name=bot", "with_tenants=globex"]]
