"""Who may call what: the table is complete, and the server keeps to it."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from control_plane.access.types import Role
from control_plane.api.auditing import READS
from control_plane.api.roles import ROLES, is_open
from control_plane.api.server import SERVICES
from protos.access.v1 import access_pb2
from protos.fleet.v1 import fleet_pb2
from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2
from protos.registry.v1 import registry_pb2
from protos.sync.v1 import sync_pb2
from tests.control_plane.replica import Replica, details, replica

MODULES = (access_pb2, fleet_pb2, inference_pb2, quota_pb2, registry_pb2, sync_pb2)
SERVED = {
    f"/{service.full_name}/{method.name}"
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
KEYS = {
    Role.ADMIN: "admin",
    Role.WORKER: "worker",
    Role.TENANT_ADMIN: "acme",
    Role.INFERENCE: "acme-user",
}


def test_every_method_of_every_service_has_its_roles() -> None:
    assert set(ROLES) == SERVED
    assert {method.rpartition("/")[0].strip("/") for method in SERVED} == set(SERVICES)


def test_an_administrator_may_call_everything_but_a_workers_stream() -> None:
    assert {method for method, roles in ROLES.items() if Role.ADMIN not in roles} == {
        "/loraplane.sync.v1.WorkerSync/Sync"
    }


def test_an_inference_key_generates_and_nothing_else() -> None:
    assert {method for method, roles in ROLES.items() if Role.INFERENCE in roles} == {
        f"/loraplane.inference.v1.Inference/{name}" for name in ("Generate", "ListModels", "Tokenize")
    }


def test_every_method_that_is_not_audited_is_served_and_only_reads() -> None:
    assert READS < SERVED
    verbs = ("Get", "List", "Watch", "Generate", "Tokenize", "Sync")
    for method in SERVED:
        assert method.rpartition("/")[2].startswith(verbs) == (method in READS), method


def test_only_health_and_reflection_are_open() -> None:
    assert is_open("/grpc.health.v1.Health/Check")
    assert is_open("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    assert not any(is_open(method) for method in SERVED)


async def test_server_refuses_every_method_to_every_role_the_table_leaves_out(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control:
        for method, roles in ROLES.items():
            for role in set(Role) - roles:
                assert (
                    await _code(control, method, control.as_(KEYS[role])) is grpc.StatusCode.PERMISSION_DENIED
                )


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer lp_x_y"),), (("authorization", "x"),)])
async def test_no_key_or_an_unknown_one_is_unauthenticated(
    redis: Redis, tmp_path: Path, metadata: Any
) -> None:
    async with replica(redis, tmp_path) as control:
        for method in sorted(ROLES):
            assert await _code(control, method, metadata) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_tenant_admin_is_confined_to_its_tenant(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        calls = [
            control.registry.GetAdapter(
                registry_pb2.GetAdapterRequest(tenant="globex", name="x"), metadata=control.as_("acme")
            ),
            control.registry.ListAdapters(
                registry_pb2.ListAdaptersRequest(tenant="globex"), metadata=control.as_("acme")
            ),
            control.registry.DeleteAdapter(
                registry_pb2.DeleteAdapterRequest(tenant="globex", name="x"), metadata=control.as_("acme")
            ),
            control.quotas.GetUsage(quota_pb2.GetUsageRequest(tenant="globex"), metadata=control.as_("acme")),
            control.quotas.GetQuota(quota_pb2.GetQuotaRequest(tenant="globex"), metadata=control.as_("acme")),
            control.access.ListKeys(
                access_pb2.ListKeysRequest(tenant="globex"), metadata=control.as_("acme")
            ),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert details(caught.value)["ErrorInfo"].reason == "Forbidden"


async def _code(control: Replica, method: str, metadata: Any) -> grpc.StatusCode:
    """The status of a call with an empty message, by any of the four shapes of a method."""
    call = control.channel.stream_stream(method, None, None)(iter([b""]), metadata=metadata, timeout=5)
    return await call.code()
