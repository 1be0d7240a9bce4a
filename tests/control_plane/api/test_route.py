"""Route: admission for clients that call workers by themselves, and the accounts of what they do there."""

from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from redis.asyncio import Redis

from control_plane.access.direct_grants import DirectGrants
from control_plane.errors import InvalidArgument
from control_plane.quotas.types import Limits, Quota, Usage
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from protos.inference.v1 import inference_pb2 as pb
from protos.registry.v1 import registry_pb2
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, FakeWorker
from tests.control_plane.replica import Replica, details, eventually, ready, replica


async def route(control: Replica, model: str = BASE_MODEL, **fields: Any) -> pb.RouteResponse:
    asked = {"prompt_tokens": 10, "max_tokens": 16} | fields
    return await control.inference.Route(
        pb.RouteRequest(model=model, **asked), metadata=control.as_("acme-user")
    )


async def register(control: Replica, root: Path) -> Any:
    source = str(write_adapter(root / "acme" / "bot"))
    message = registry_pb2.RegisterAdapterRequest(name="bot", source=source)
    return await control.registry.RegisterAdapter(message, metadata=control.as_("acme"))


def ended(routed: pb.RouteResponse, prompt: int, completion: int, **more: Any) -> sync.DirectRequest:
    usage = sync.DirectUsage(prompt_tokens=prompt, completion_tokens=completion, **more)
    return sync.DirectRequest(grant=routed.grant, usage=usage)


async def settled(worker: FakeWorker, routed: pb.RouteResponse, times: int = 1) -> None:
    await eventually(lambda: worker.settled.count(routed.request_id) >= times)


async def usage_of(control: Replica) -> Usage:
    return await control.plane.quotas.usage("acme")


async def test_the_answer_names_worker_and_weights_and_the_grant_says_the_same(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        adapter = await register(control, tmp_path)
        routed = await route(control, "bot")
        assert (routed.worker_id, routed.address) == ("worker-0", worker.address)
        assert (routed.adapter, routed.revision) == ("bot", 1)
        assert routed.digest == adapter.revisions[0].digest
        pem = worker.leases[-1].grant_keys[0].public_key_pem
        claims = jwt.decode(routed.grant, pem, algorithms=["EdDSA"], audience="loraplane-worker")
        assert (claims["jti"], claims["sub"], claims["mx"]) == (routed.request_id, "acme", 16)
        assert claims["ad"]["d"] == routed.digest
        assert (claims["dr"]["i"], claims["dr"]["p"]) == (worker.instance_id, 10)
        assert claims["exp"] - claims["iat"] <= routed.ttl_s + 1


async def test_what_is_told_of_a_request_is_settled_once_however_often_it_is_told(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        routed = await route(control)
        assert (await usage_of(control)).concurrent_requests == 1
        worker.tell(sync.DirectRequest(grant=routed.grant))
        for _ in range(3):
            worker.tell(ended(routed, 5, 7))
        await settled(worker, routed, times=3)
        used = await usage_of(control)
        assert (used.requests, used.prompt_tokens, used.completion_tokens) == (1, 5, 7)
        assert used.concurrent_requests == 0


async def test_another_replica_settles_what_the_one_that_routed_has_never_heard_of(
    redis: Redis, tmp_path: Path
) -> None:
    async with (
        replica(redis, tmp_path) as one,
        replica(redis, tmp_path) as other,
        other.worker().run() as worker,
    ):
        await ready(one, "worker-0")
        routed = await route(one)
        worker.tell(ended(routed, 2, 3))
        await settled(worker, routed)
        assert (await usage_of(one)).completion_tokens == 3


async def test_a_reservation_lives_as_long_as_its_request_and_expires_when_nobody_tells(
    redis: Redis, tmp_path: Path
) -> None:
    async with (
        replica(redis, tmp_path, reservation_ttl_s=1.8) as control,
        control.worker().run() as worker,
    ):
        await ready(control, "worker-0")
        running, unused = await route(control), await route(control)
        worker.tell(sync.DirectRequest(grant=running.grant))

        async def one_left() -> bool:
            return (await usage_of(control)).concurrent_requests == 1

        await eventually(one_left)  # the unused one's ended
        remaining_ms = [
            await redis.pttl(f"lp:{{quota:acme}}:request:{one.request_id}") for one in (running, unused)
        ]
        assert remaining_ms[0] > 0 > remaining_ms[1]
        worker.tell(ended(running, 1, 1))
        await settled(worker, running)
        assert (await usage_of(control)).concurrent_requests == 0


async def test_a_request_that_died_with_its_worker_frees_its_place_and_gets_no_budget_back(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path, reservation_ttl_s=0.9) as control:
        async with control.worker().run() as worker:
            await ready(control, "worker-0")
            limits = Limits(tokens_per_minute=60)  # one comes back in a second
            await control.plane.quotas.set(Quota(tenant="acme", limits=limits))
            routed = await route(control)
            worker.tell(sync.DirectRequest(grant=routed.grant))
        used = await eventually(lambda: _over(control))
        assert used.remaining_tokens < 60 - 26 + 20  # 26 were reserved
        assert (used.requests, used.prompt_tokens, used.completion_tokens) == (1, 0, 0)


async def _over(control: Replica) -> Usage | None:
    used = await usage_of(control)
    return None if used.concurrent_requests else used


async def test_a_request_that_is_refused_holds_nothing(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run():
        await ready(control, "worker-0")
        await control.plane.quotas.set(
            Quota(tenant="acme", limits=Limits(concurrent_requests=1, tokens_per_minute=100))
        )
        for fields, named in (({"prompt_tokens": 0}, "prompt_tokens"), ({"max_tokens": 0}, "max_tokens")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await route(control, **fields)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert details(caught.value)["BadRequest"].field_violations[0].field == named
        await control.plane.quotas.set(Quota(tenant="acme", limits=Limits(resident_slots=0)))
        await register(control, tmp_path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await route(control, "bot")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await usage_of(control)).concurrent_requests == 0


async def test_a_cold_load_is_charged_and_a_slot_held_as_for_any_request(
    redis: Redis, tmp_path: Path
) -> None:
    limits = Limits(cold_loads_per_minute=10, resident_slots=1)
    # Nobody is offered it before its first request.
    async with replica(redis, tmp_path, num_holders=0) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await control.plane.quotas.set(Quota(tenant="acme", limits=limits))
        await register(control, tmp_path)
        routed = await route(control, "bot")
        assert (await usage_of(control)).remaining_cold_loads == 9
        for _ in range(2):
            worker.tell(ended(routed, 1, 1, cold=False))
        await settled(worker, routed, times=2)
        used = await usage_of(control)
        assert (used.remaining_cold_loads, used.cold_loads) == (9, 1), "it began when it was routed"
        await eventually(lambda: control.plane.fleet.get("worker-0").status.held)
        again = await route(control, "bot")
        worker.tell(ended(again, 1, 1, cold=False))
        await settled(worker, again)
        used = await usage_of(control)
        assert (used.remaining_cold_loads, used.cold_loads) == (9, 1), "it was warm when it was routed"


async def test_only_grants_that_were_given_for_this_worker_are_settled(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        keys = control.plane.grant_keys.public
        routed, relayed = await route(control), jwt.encode({"jti": "x"}, "secret" * 8, algorithm="HS256")
        assert DirectGrants(keys).read(routed.grant, worker_id="worker-0").request_id == routed.request_id
        for token, worker_id in ((routed.grant, "worker-1"), (relayed, "worker-0"), ("", "worker-0")):
            with pytest.raises(InvalidArgument):
                DirectGrants(keys).read(token, worker_id=worker_id)
        # One that tells nonsense is not listened to, and loses nothing by it.
        worker.tell(sync.DirectRequest(grant="nonsense"))
        worker.tell(ended(routed, 1, 1))
        await settled(worker, routed)


async def test_without_redis_nothing_is_routed_whatever_the_local_share(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "valkey", fsync="no") as valkey:
        async with (
            replica(connect(valkey.url), tmp_path, store_loss_requests_per_minute=100) as control,
            control.worker().run(),
        ):
            await ready(control, "worker-0")
            await route(control)
            valkey.stop()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await route(control)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            valkey.start()
