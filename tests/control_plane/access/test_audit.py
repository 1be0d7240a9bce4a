"""The audit log, and rotation of keys, through the server."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from control_plane.access.audit import BEGUN, AuditEvent, AuditLog
from control_plane.errors import InvalidArgument
from control_plane.registry.types import Adapter, NewAdapter
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from protos.access.v1 import access_pb2 as pb
from protos.quota.v1 import quota_pb2
from protos.registry.v1 import registry_pb2
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.replica import Replica, eventually, replica


def event(number: int) -> AuditEvent:
    return AuditEvent(
        key_id="k",
        tenant="acme",
        method="/m",
        targets=(f"name=bot-{number}",),
        status="OK",
        request_id=str(number),
    )


async def test_pages_are_newest_first_and_complete(redis: Redis) -> None:
    log = AuditLog(redis)
    for number in range(5):
        await log.append(event(number))
    seen, token = [], ""
    while True:
        page, token = await log.page(2, token)
        seen += [one.request_id for one in page]
        if not token:
            break
    assert seen == ["4", "3", "2", "1", "0"]


async def test_a_token_of_nothing_is_refused(redis: Redis) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        await AuditLog(redis).page(2, "(")


async def test_a_call_that_ended_is_one_entry_with_its_outcome(redis: Redis) -> None:
    log = AuditLog(redis)
    begun = await log.append(replace(event(1), status=BEGUN))
    other = await log.append(replace(event(2), status=BEGUN))
    await log.end(begun, "OK")
    page, _ = await log.page()
    assert [(one.request_id, one.status) for one in page] == [("1", "OK"), ("2", BEGUN)]
    await log.end(other, "NOT_FOUND")
    page, _ = await log.page()
    assert [(one.request_id, one.status) for one in page] == [("2", "NOT_FOUND"), ("1", "OK")]


async def test_an_action_has_its_entry_though_redis_dies_right_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_adapter(tmp_path / "acme" / "bot"))
    request = registry_pb2.RegisterAdapterRequest(name="bot", source=source)
    with EmbeddedValkey(tmp_path / "valkey", die_with_parent=False) as valkey:
        client = connect(valkey.url)
        async with replica(client, tmp_path) as control:
            register = control.plane.registry.register

            async def register_and_die(new: NewAdapter) -> Adapter:
                adapter = await register(new)
                valkey.kill()
                return adapter

            monkeypatch.setattr(control.plane.registry, "register", register_and_die)
            with pytest.raises(grpc.aio.AioRpcError):
                await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
            # While it is away nothing is done that could not be written down.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await control.registry.DeleteAdapter(
                    registry_pb2.DeleteAdapterRequest(name="bot"), metadata=control.as_("acme")
                )
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            valkey.start()
            [entry] = await eventually(lambda: _listed(control))
            assert (entry.method.rpartition("/")[2], entry.status) == ("RegisterAdapter", BEGUN)
            assert list(entry.targets) == ["name=bot"]
            await control.registry.GetAdapter(
                registry_pb2.GetAdapterRequest(name="bot"), metadata=control.as_("acme")
            )
        await client.aclose()


async def _listed(control: Replica) -> list[Any]:
    try:
        return await audited(control)
    except grpc.aio.AioRpcError:
        return []  # not back yet


async def audited(control: Replica) -> list[Any]:
    answer = await control.access.ListAuditEvents(pb.ListAuditEventsRequest(), metadata=control.as_("admin"))
    return list(answer.events)


async def test_changes_and_refused_attempts_are_audited_with_key_and_target_and_reads_are_not(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control:
        source = str(write_adapter(tmp_path / "acme" / "bot"))
        register = registry_pb2.RegisterAdapterRequest(name="bot", source=source)
        await control.registry.RegisterAdapter(register, metadata=control.as_("acme"))
        await control.registry.GetAdapter(
            registry_pb2.GetAdapterRequest(name="bot"), metadata=control.as_("acme")
        )
        quota = quota_pb2.Quota(tenant="acme", limits=quota_pb2.Limits(requests_per_minute=7))
        with pytest.raises(grpc.aio.AioRpcError):
            await control.quotas.SetQuota(
                quota_pb2.SetQuotaRequest(quota=quota), metadata=control.as_("acme")
            )
        await control.quotas.SetQuota(quota_pb2.SetQuotaRequest(quota=quota), metadata=control.as_("admin"))
        events = await audited(control)
    assert [(one.method.rpartition("/")[2], one.status, one.tenant) for one in events] == [
        ("SetQuota", "OK", ""),
        ("SetQuota", "PERMISSION_DENIED", "acme"),
        ("RegisterAdapter", "OK", "acme"),
    ]
    assert list(events[0].targets) == ["tenant=acme"]
    assert list(events[2].targets) == ["name=bot"]
    assert events[2].key_id in control.keys["acme"]
    assert all(one.request_id and one.time.seconds for one in events)


async def test_calls_without_a_valid_key_leave_no_entry(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        with pytest.raises(grpc.aio.AioRpcError):
            await control.registry.DeleteAdapter(registry_pb2.DeleteAdapterRequest(name="bot"))
        assert await audited(control) == []


async def test_a_rotated_key_has_a_successor_and_ends(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        create = pb.CreateKeyRequest(tenant="acme", role=pb.ROLE_INFERENCE, description="ci")
        old = await control.access.CreateKey(create, metadata=control.as_("admin"))
        new = await control.access.RotateKey(
            pb.RotateKeyRequest(key_id=old.key.key_id), metadata=control.as_("acme")
        )
        assert (new.key.tenant, new.key.role, new.key.description) == ("acme", pb.ROLE_INFERENCE, "ci")
        assert new.secret != old.secret
        control.keys |= {"old": old.secret, "new": new.secret}
        from protos.inference.v1 import inference_pb2

        listing = inference_pb2.ListModelsRequest()
        await control.inference.ListModels(listing, metadata=control.as_("new"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.inference.ListModels(listing, metadata=control.as_("old"))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        keys = await control.access.ListKeys(pb.ListKeysRequest(tenant="acme"), metadata=control.as_("admin"))
        by_id = {key.key_id: key for key in keys.keys}
        assert by_id[old.key.key_id].HasField("expire_time")
        assert by_id[new.key.key_id].HasField("last_use_time")


async def test_a_tenant_admin_rotates_no_key_of_another_tenant(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        create = pb.CreateKeyRequest(tenant="globex", role=pb.ROLE_INFERENCE)
        other = await control.access.CreateKey(create, metadata=control.as_("admin"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await control.access.RotateKey(
                pb.RotateKeyRequest(key_id=other.key.key_id), metadata=control.as_("acme")
            )
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("token", ["0-0", "000-00", "1", "x"])
async def test_a_page_token_before_all_events_is_refused(redis: Redis, token: str) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        await AuditLog(redis).page(10, token)


async def test_a_call_with_a_huge_name_leaves_a_small_entry(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        with pytest.raises(grpc.aio.AioRpcError):
            await control.access.RevokeKey(
                pb.RevokeKeyRequest(key_id="x" * 1_000_000), metadata=control.as_("admin")
            )
        (event, *_), _ = await AuditLog(redis).page()
        assert len(event.targets[0]) < 300
