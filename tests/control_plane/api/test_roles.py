"""Who may call what: the table is complete, and the server keeps to it."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from redis.asyncio import Redis

from control_plane.access.types import Role
from control_plane.api.auditing import READS
from control_plane.api.interceptors import ADAPTER_CHANGES
from control_plane.api.roles import ROLES, is_open
from control_plane.api.server import SERVICES
from control_plane.config import ControlSettings
from protos.access.v1 import access_pb2
from protos.fleet.v1 import fleet_pb2
from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2
from protos.registry.v1 import registry_pb2
from protos.sync.v1 import sync_pb2
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.replica import Replica, replica

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
        f"/loraplane.inference.v1.Inference/{name}"
        for name in ("Generate", "Route", "ListModels", "Tokenize")
    }


def test_every_method_that_is_not_audited_is_served_and_only_reads() -> None:
    assert READS < SERVED
    verbs = ("Get", "List", "Watch", "Generate", "Route", "Tokenize", "Sync")
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


async def test_adapters_are_changed_only_where_that_is_allowed_and_by_an_admin_key(
    redis: Redis, tmp_path: Path
) -> None:
    assert {method.rpartition("/")[2] for method in ADAPTER_CHANGES} == {
        method.name
        for method in registry_pb2.DESCRIPTOR.services_by_name["AdapterRegistry"].methods
        if not method.name.startswith(("Get", "List", "Watch"))
    }
    assert not ControlSettings().allow_adapter_changes
    async with replica(redis, tmp_path, allow_adapter_changes=False) as control:
        for method in sorted(ADAPTER_CHANGES):
            for who in ("admin", "acme"):
                assert await _code(control, method, control.as_(who)) is grpc.StatusCode.FAILED_PRECONDITION
            assert await _code(control, method, control.as_("acme-user")) is grpc.StatusCode.PERMISSION_DENIED
        # Reading goes on, and so does everything that is not about adapters.
        await control.registry.ListAdapters(registry_pb2.ListAdaptersRequest(), metadata=control.as_("admin"))
        await control.quotas.DeleteQuota(
            quota_pb2.DeleteQuotaRequest(tenant="acme"), metadata=control.as_("admin")
        )


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer lp_x_y"),), (("authorization", "x"),)])
async def test_no_key_or_an_unknown_one_is_unauthenticated(
    redis: Redis, tmp_path: Path, metadata: Any
) -> None:
    async with replica(redis, tmp_path) as control:
        for method in sorted(ROLES):
            assert await _code(control, method, metadata) is grpc.StatusCode.UNAUTHENTICATED


def naming_a_tenant() -> dict[str, Message]:
    """For every method whose request names a tenant, at whatever depth: one that names globex."""
    requests = {}
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = GetMessageClass(method.input_type)()
                if method.name == "CreateKey":
                    request.role = access_pb2.ROLE_INFERENCE  # the one that a tenant's key may make
                if name_globex(request):
                    requests[f"/{service.full_name}/{method.name}"] = request
    return requests


def name_globex(message: Message) -> bool:
    """Set every field `tenant` of it and of what it holds; False when there is none."""
    found = False
    for field in message.DESCRIPTOR.fields:
        if field.name == "tenant":
            message.tenant = "globex"  # type: ignore[attr-defined]
            found = True
        elif field.name == "name":
            message.name = "x"  # type: ignore[attr-defined]
        elif field.message_type is not None and not field.is_repeated:
            held = type(getattr(message, field.name))()
            if name_globex(held):
                getattr(message, field.name).CopyFrom(held)
                found = True
    return found


async def test_every_method_that_names_a_tenant_confines_all_but_administrators_to_their_own(
    redis: Redis, tmp_path: Path
) -> None:
    requests = naming_a_tenant()
    assert requests.keys() >= ADAPTER_CHANGES
    async with replica(redis, tmp_path) as control:
        tried = set()
        for method, request in requests.items():
            for role in ROLES[method] & {Role.TENANT_ADMIN, Role.INFERENCE}:
                call = control.channel.stream_stream(method, None, None)(
                    iter([request.SerializeToString()]), metadata=control.as_(KEYS[role]), timeout=5
                )
                assert await call.code() is grpc.StatusCode.PERMISSION_DENIED, method
                assert await call.details() == "the key belongs to another tenant than 'globex'", method
                tried.add(method)
    # What no tenant's key may call at all the table of roles refuses.
    assert {method for method in requests if Role.TENANT_ADMIN in ROLES[method]} == tried


async def test_a_tenant_reads_of_another_what_is_shared_with_it_and_changes_nothing_of_it(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control:
        source = str(write_adapter(tmp_path / "acme" / "bot"))
        for name, shared_with in (("bot", ["globex", "initech"]), ("secret", ["initech"])):
            request = registry_pb2.RegisterAdapterRequest(
                name=name, source=source, shared_with=shared_with, labels={"team": "a"}
            )
            await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
        seen = await control.registry.GetAdapter(
            registry_pb2.GetAdapterRequest(tenant="acme", name="bot"), metadata=control.as_("globex")
        )
        assert (seen.name, list(seen.shared_with), dict(seen.labels)) == ("bot", ["globex"], {})
        models = await control.inference.ListModels(
            inference_pb2.ListModelsRequest(), metadata=control.as_("globex-user")
        )
        assert [model.id for model in models.models] == ["acme/bot"]
        refused = []
        for call in (
            control.registry.GetAdapter(
                registry_pb2.GetAdapterRequest(tenant="acme", name="secret"), metadata=control.as_("globex")
            ),
            control.registry.GetAdapter(
                registry_pb2.GetAdapterRequest(tenant="acme", name="absent"), metadata=control.as_("globex")
            ),
            control.registry.DeleteAdapter(
                registry_pb2.DeleteAdapterRequest(tenant="acme", name="bot"), metadata=control.as_("globex")
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            refused.append((caught.value.code(), caught.value.details()))
        # What is not shared looks like what is not there.
        assert set(refused) == {
            (grpc.StatusCode.PERMISSION_DENIED, "the key belongs to another tenant than 'acme'")
        }


async def _code(control: Replica, method: str, metadata: Any) -> grpc.StatusCode:
    """The status of a call with an empty message, by any of the four shapes of a method."""
    call = control.channel.stream_stream(method, None, None)(iter([b""]), metadata=metadata, timeout=5)
    return await call.code()
