"""Deleting what workers hold: it waits for them, as nobody's to use; then name and bytes are free."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from protos.inference.v1 import inference_pb2
from protos.quota.v1 import quota_pb2
from protos.registry.v1 import registry_pb2 as pb
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import FakeWorker, Script
from tests.control_plane.replica import Replica, eventually, ready, replica


class Leases:
    """A worker's refusals: it evicts nothing while a stream uses it."""

    def __init__(self) -> None:
        self.held = True

    def refuse(self, command: sync.Command) -> sync.Nack | None:
        return sync.Nack(reason="leased") if self.held and command.HasField("evict") else None


async def registered(
    control: Replica, root: Path, worker: FakeWorker, **more: Any
) -> pb.RegisterAdapterRequest:
    """Register `acme/bot`, and have the worker hold it."""
    source = str(write_adapter(root / "acme" / "bot"))
    request = pb.RegisterAdapterRequest(name="bot", source=source, **more)
    adapter = await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
    await eventually(lambda: adapter.revisions[0].digest in worker.held)
    await eventually(lambda: any(True for _ in control.plane.fleet.held("acme")))
    return request


async def delete(control: Replica) -> pb.DeleteAdapterResponse:
    return await control.registry.DeleteAdapter(
        pb.DeleteAdapterRequest(name="bot"), metadata=control.as_("acme")
    )


def listed(control: Replica) -> Callable[[], Any]:
    async def names() -> list[str]:
        page = await control.registry.ListAdapters(pb.ListAdaptersRequest(), metadata=control.as_("acme"))
        return [adapter.name for adapter in page.adapters]

    return names


async def used(control: Replica) -> tuple[int, int]:
    usage = await control.quotas.GetUsage(quota_pb2.GetUsageRequest(), metadata=control.as_("acme"))
    return usage.registered_adapters, usage.adapter_bytes


async def refused(call: Any, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() is code
    return error.value.details() or ""


def generate(control: Replica, model: str, who: str = "acme-user") -> Any:
    request = inference_pb2.GenerateRequest(model=model, text="hello")
    return control.inference.Generate(request, metadata=control.as_(who))


async def gone(control: Replica) -> bool:
    return not await listed(control)()


async def test_a_deleted_adapter_waits_for_its_stream_and_is_nobodys_to_use(
    redis: Redis, tmp_path: Path
) -> None:
    leases = Leases()
    script = Script(num_tokens=3, hold_after=1, refuse=leases.refuse)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        more = {"aliases": ["friend"], "shared_with": ["globex"]}
        register = await registered(control, tmp_path, worker, **more)
        before = await used(control)
        stream = aiter(generate(control, "bot"))
        assert (await anext(stream)).started.revision == 1
        await worker.streaming.wait()

        shown = (await delete(control)).adapter
        assert shown.HasField("delete_time")
        assert await listed(control)() == ["bot"]
        assert (await control.registry.GetAdapter(
            pb.GetAdapterRequest(name="bot"), metadata=control.as_("acme")
        )).delete_time == shown.delete_time  # fmt: skip
        for model, who in (("bot", "acme-user"), ("friend", "acme-user"), ("acme/bot", "globex-user")):
            await refused(generate(control, model, who).read(), grpc.StatusCode.NOT_FOUND)
        models = await control.inference.ListModels(
            inference_pb2.ListModelsRequest(), metadata=control.as_("acme-user")
        )
        assert "bot" not in [model.id for model in models.models]
        # Neither changed nor deleted again, and its name is taken.
        pin = pb.PinAdapterRequest(name="bot", tier=pb.PIN_TIER_CPU)
        said = await refused(
            control.registry.PinAdapter(pin, metadata=control.as_("acme")), grpc.StatusCode.NOT_FOUND
        )
        assert "is being deleted" in said
        await refused(delete(control), grpc.StatusCode.NOT_FOUND)
        again = control.registry.RegisterAdapter(register, metadata=control.as_("acme"))
        assert "is being deleted" in await refused(again, grpc.StatusCode.ALREADY_EXISTS)
        await eventually(lambda: "evict" in worker.verbs())
        assert await used(control) == before

        worker.go_on.set()
        rest = [response.WhichOneof("event") async for response in stream]
        assert rest == ["delta", "delta", "delta", "finished"]
        leases.held = False
        await eventually(lambda: gone(control))
        assert not worker.held
        assert await used(control) == (0, 0)
        await control.registry.RegisterAdapter(register, metadata=control.as_("acme"))


async def test_what_no_worker_holds_is_gone_at_once(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        source = str(write_adapter(tmp_path / "acme" / "bot"))
        request = pb.RegisterAdapterRequest(name="bot", source=source)
        await control.registry.RegisterAdapter(request, metadata=control.as_("acme"))
        assert not (await delete(control)).HasField("adapter")
        assert await gone(control)


async def test_a_worker_that_is_lost_is_waited_for_no_more(redis: Redis, tmp_path: Path) -> None:
    leases = Leases()
    async with replica(redis, tmp_path) as control:
        worker = control.worker(script=Script(refuse=leases.refuse))
        async with worker.run():
            await ready(control, "worker-0")
            await registered(control, tmp_path, worker)
            assert (await delete(control)).HasField("adapter")
        await eventually(lambda: gone(control))
        assert await used(control) == (0, 0)


async def test_the_next_replica_goes_on_waiting(redis: Redis, tmp_path: Path) -> None:
    leases = Leases()
    async with replica(redis, tmp_path) as control:
        worker = control.worker(script=Script(refuse=leases.refuse))
        async with worker.run():
            await ready(control, "worker-0")
            await registered(control, tmp_path, worker)
            await delete(control)
            async with replica(redis, tmp_path) as other:
                assert await listed(other)() == ["bot"]
                leases.held = False
                await eventually(lambda: gone(other))


async def test_a_watch_sees_it_waiting_then_gone(redis: Redis, tmp_path: Path) -> None:
    leases = Leases()
    async with (
        replica(redis, tmp_path) as control,
        control.worker(script=Script(refuse=leases.refuse)).run() as worker,
    ):
        await ready(control, "worker-0")
        await registered(control, tmp_path, worker)
        watch = control.registry.WatchAdapters(pb.WatchAdaptersRequest(), metadata=control.as_("acme"))
        assert (await watch.read()).type == pb.AdapterEvent.TYPE_ADDED
        await delete(control)
        waiting = await watch.read()
        assert waiting.type == pb.AdapterEvent.TYPE_MODIFIED
        assert waiting.adapter.HasField("delete_time")
        leases.held = False
        assert (await watch.read()).type == pb.AdapterEvent.TYPE_DELETED
        watch.cancel()
