"""What workers are told when the registry or the workers change: a real replica, real streams."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from control_plane.workers.types import WorkerState
from protos.fleet.v1 import fleet_pb2
from protos.inference.v1 import inference_pb2
from protos.registry.v1 import registry_pb2 as pb
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import Script
from tests.control_plane.replica import LEASE_S, Replica, details, eventually, ready, replica


async def register(control: Replica, root: Path, name: str = "bot", fill: float = 1.0) -> Any:
    source = str(write_adapter(root / f"{name}-{fill}", fill=fill))
    message = pb.RegisterAdapterRequest(tenant="acme", name=name, source=source)
    return await control.registry.RegisterAdapter(message, metadata=control.as_("admin"))


async def get(control: Replica, name: str = "bot") -> Any:
    return await control.registry.GetAdapter(pb.GetAdapterRequest(name=name), metadata=control.as_("acme"))


async def problems(control: Replica) -> Any:
    async def found() -> Any:
        return (await get(control)).problems

    return await eventually(found)


def loaded(worker: Any, digest: str) -> Any:
    return lambda: digest in worker.held


async def test_registered_adapter_is_loaded_and_seen_on_the_worker(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        adapter = await register(control, tmp_path)
        digest = adapter.revisions[0].digest
        await eventually(lambda: digest in control.plane.fleet.get("worker-0").status.held)
        (command,) = worker.commands
        assert command.load.adapter.source == adapter.revisions[0].source
        assert command.load.into_slot is False
        assert command.generation == adapter.generation
        assert command.fencing_token == control.plane.leadership.token == 1


async def test_published_revision_is_reloaded_in_place(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        old = (await register(control, tmp_path)).revisions[0].digest
        await eventually(lambda: old in control.plane.fleet.get("worker-0").status.held)
        publish = pb.PublishRevisionRequest(
            name="bot",
            source=str(write_adapter(tmp_path / "acme" / "next", fill=2.0)),
            reload_policy=pb.RELOAD_POLICY_DRAIN,
        )
        adapter = await control.registry.PublishRevision(publish, metadata=control.as_("acme"))
        await eventually(loaded(worker, adapter.revisions[1].digest))
        reload = worker.commands[-1].reload
        assert (reload.replaces_digest, reload.policy) == (old, pb.RELOAD_POLICY_DRAIN)
        assert worker.verbs() == ["load", "reload"]


async def test_deleted_adapter_is_evicted(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        digest = (await register(control, tmp_path)).revisions[0].digest
        await eventually(lambda: digest in control.plane.fleet.get("worker-0").status.held)
        await control.registry.DeleteAdapter(
            pb.DeleteAdapterRequest(name="bot"), metadata=control.as_("acme")
        )
        await eventually(lambda: not worker.held)
        assert worker.verbs() == ["load", "evict"]


async def test_terminal_refusal_is_shown_and_not_repeated(redis: Redis, tmp_path: Path) -> None:
    script = Script(refuse=lambda command: sync.Nack(reason="rank 64 is above 16", terminal=True))
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        await register(control, tmp_path)
        (problem,) = await problems(control)
        assert (problem.worker_id, problem.ok, problem.reason) == ("worker-0", False, "rank 64 is above 16")
        await register(control, tmp_path, "other", fill=3.0)  # another round of planning
        await eventually(lambda: len(worker.commands) == 2)
        assert [command.load.adapter.name for command in worker.commands] == ["bot", "other"]


async def test_other_refusals_are_repeated_after_a_while(redis: Redis, tmp_path: Path) -> None:
    refusals = iter([sync.Nack(reason="disk is busy")])
    script = Script(refuse=lambda command: next(refusals, None))
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        digest = (await register(control, tmp_path)).revisions[0].digest
        assert (await problems(control))[0].reason == "disk is busy"
        await eventually(loaded(worker, digest))

        async def solved() -> bool:
            return not (await get(control)).problems

        await eventually(solved)


async def test_restarted_worker_is_filled_again(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control:
        async with control.worker().run() as worker:
            await ready(control, "worker-0")
            digest = (await register(control, tmp_path)).revisions[0].digest
            await eventually(lambda: digest in control.plane.fleet.get("worker-0").status.held)
        await eventually(lambda: control.plane.fleet.get("worker-0").state is WorkerState.LOST)
        async with control.worker().run() as worker:
            await eventually(loaded(worker, digest))


async def test_evicted_adapter_stays_out_until_its_generation_changes(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        digest = (await register(control, tmp_path)).revisions[0].digest
        await eventually(lambda: digest in control.plane.fleet.get("worker-0").status.held)
        answer = await control.registry.EvictAdapter(
            pb.EvictAdapterRequest(name="bot"), metadata=control.as_("acme")
        )
        (report,) = answer.reports
        assert report.ok
        assert report.size_bytes > 0
        await eventually(lambda: digest not in control.plane.fleet.get("worker-0").status.held)
        await register(control, tmp_path, "other", fill=3.0)  # another round of planning
        await eventually(lambda: len(worker.held) == 1)
        assert worker.verbs() == ["load", "evict", "load"]
        publish = pb.PublishRevisionRequest(
            name="bot", source=str(write_adapter(tmp_path / "acme" / "n", fill=2.0))
        )
        await control.registry.PublishRevision(publish, metadata=control.as_("acme"))
        await eventually(lambda: len(worker.held) == 2)


async def test_operator_loads_and_reloads_with_each_workers_answer(redis: Redis, tmp_path: Path) -> None:
    async with (
        replica(redis, tmp_path, num_holders=0) as control,
        control.worker("worker-a").run() as one,
        control.worker("worker-b", Script(refuse=lambda command: sync.Nack(reason="no"))).run(),
    ):
        await ready(control, "worker-a", "worker-b")
        await register(control, tmp_path)
        both = ["worker-a", "worker-b"]
        answer = await control.registry.LoadAdapter(
            pb.LoadAdapterRequest(name="bot", worker_ids=both), metadata=control.as_("acme")
        )
        assert [(r.worker_id, r.ok, r.reason) for r in answer.reports] == [
            ("worker-a", True, ""),
            ("worker-b", False, "no"),
        ]
        await eventually(lambda: control.plane.fleet.get("worker-a").status.held)
        reloaded = await control.registry.ReloadAdapter(
            pb.ReloadAdapterRequest(name="bot"), metadata=control.as_("acme")
        )
        assert [report.worker_id for report in reloaded.reports] == ["worker-a"]
        assert one.verbs() == ["load", "reload"]


async def test_pin_reaches_the_worker_and_is_taken_back(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        digest = (await register(control, tmp_path)).revisions[0].digest
        await eventually(loaded(worker, digest))
        await control.registry.PinAdapter(
            pb.PinAdapterRequest(name="bot", tier=pb.PIN_TIER_CPU), metadata=control.as_("acme")
        )
        await eventually(lambda: worker.held[digest].pinned)
        await control.registry.UnpinAdapter(pb.UnpinAdapterRequest(name="bot"), metadata=control.as_("acme"))
        await eventually(lambda: not worker.held[digest].pinned)


async def test_drained_worker_is_told_and_takes_no_requests(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        drained = await control.fleet.DrainWorker(
            fleet_pb2.DrainWorkerRequest(worker_id="worker-0"), metadata=control.as_("admin")
        )
        assert drained.state == fleet_pb2.WORKER_STATE_DRAINING
        await eventually(lambda: worker.verbs() == ["drain"])


async def test_drain_finishes_what_runs_hands_adapters_over_and_sends_requests_elsewhere(
    redis: Redis, tmp_path: Path
) -> None:
    async with (
        replica(redis, tmp_path) as control,
        control.worker("worker-0", Script(hold_after=1)).run() as one,
    ):
        await ready(control, "worker-0")
        digest = (await register(control, tmp_path)).revisions[0].digest
        await eventually(loaded(one, digest))
        request = inference_pb2.GenerateRequest(model="bot", text="hello")
        running = control.inference.Generate(request, metadata=control.as_("acme-user"))
        answers = asyncio.create_task(_events(running))
        await one.streaming.wait()
        async with control.worker("worker-1").run() as other:
            await ready(control, "worker-1")
            await control.fleet.DrainWorker(
                fleet_pb2.DrainWorkerRequest(worker_id="worker-0"), metadata=control.as_("admin")
            )
            await eventually(loaded(other, digest))  # handed over, before anybody asks for it
            await eventually(lambda: one.verbs()[-1] == "drain")
            await _events(control.inference.Generate(request, metadata=control.as_("acme-user")))
            assert (len(one.requests), len(other.requests)) == (1, 1)
            one.go_on.set()
            assert (await answers)[-1] == "finished"


async def test_cordoned_worker_keeps_what_it_holds_and_gets_nothing_new(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        digest = (await register(control, tmp_path)).revisions[0].digest
        await eventually(loaded(worker, digest))
        cordon = fleet_pb2.CordonWorkerRequest(worker_id="worker-0")
        await control.fleet.CordonWorker(cordon, metadata=control.as_("admin"))
        await register(control, tmp_path, "other", fill=3.0)
        async with control.worker("worker-1").run() as second:
            await eventually(lambda: len(second.held) == 2)  # both have a new holder
        assert (worker.verbs(), list(worker.held)) == (["load"], [digest])


async def _events(call: Any) -> list[str]:
    return [message.WhichOneof("event") async for message in call]


async def test_silent_worker_is_lost_after_its_lease(redis: Redis, tmp_path: Path) -> None:
    async with (
        replica(redis, tmp_path) as control,
        control.worker(script=Script(reports=False)).run() as worker,
    ):
        await eventually(lambda: worker.leases)
        async with asyncio.timeout(4 * LEASE_S):
            await worker.left.wait()
        assert worker.last_error is not None
        assert worker.last_error.code() is grpc.StatusCode.UNAVAILABLE
        await eventually(lambda: control.plane.fleet.get("worker-0").state is WorkerState.LOST)


async def test_newer_instance_replaces_the_older_stream(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as older:
        await ready(control, "worker-0")
        async with control.worker().run() as newer:
            await older.left.wait()
            assert older.last_error is not None
            assert older.last_error.code() is grpc.StatusCode.ABORTED
            assert details(older.last_error)["ResourceInfo"].resource_name == "worker-0"
            worker = await eventually(
                lambda: (w := control.plane.fleet.get("worker-0")).instance_id == newer.instance_id and w
            )
            assert worker.live


async def test_a_stream_must_begin_with_a_hello(redis: Redis, tmp_path: Path) -> None:
    from protos.sync.v1 import sync_pb2_grpc

    async with replica(redis, tmp_path) as control:
        stub: Any = sync_pb2_grpc.WorkerSyncStub(control.channel)
        call = stub.Sync(iter([sync.WorkerMessage(ack=sync.Ack())]), metadata=control.as_("worker"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
