"""The load of a cold adapter begins when its request is admitted."""

from pathlib import Path

from redis.asyncio import Redis

from protos.inference.v1 import inference_pb2
from protos.registry.v1 import registry_pb2 as pb
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import Script
from tests.control_plane.replica import Replica, eventually, ready, replica

ROUTE = inference_pb2.RouteRequest(model="bot", prompt_tokens=10)


async def register(control: Replica, root: Path) -> str:
    source = str(write_adapter(root / "acme" / "bot"))
    message = pb.RegisterAdapterRequest(name="bot", source=source)
    adapter = await control.registry.RegisterAdapter(message, metadata=control.as_("acme"))
    return str(adapter.revisions[0].digest)


async def test_a_routed_requests_adapter_is_loaded_where_it_was_routed_to_and_only_once(
    redis: Redis, tmp_path: Path
) -> None:
    async with (
        replica(redis, tmp_path, num_holders=0) as control,
        control.worker("worker-a").run() as one,
        control.worker("worker-b").run() as other,
    ):
        await ready(control, "worker-a", "worker-b")
        digest = await register(control, tmp_path)
        routed = await control.inference.Route(ROUTE, metadata=control.as_("acme-user"))
        chosen = {"worker-a": one, "worker-b": other}[routed.worker_id]
        await eventually(lambda: digest in control.plane.fleet.get(chosen.worker_id).status.held)
        again = await control.inference.Route(ROUTE, metadata=control.as_("acme-user"))
        assert again.worker_id == chosen.worker_id
        assert one.verbs() + other.verbs() == ["load"]


async def test_a_hint_that_is_refused_is_no_problem_of_the_adapter_and_may_be_given_again(
    redis: Redis, tmp_path: Path
) -> None:
    script = Script(refuse=lambda command: sync.Nack(reason="disk is busy"))
    async with (
        replica(redis, tmp_path, num_holders=0) as control,
        control.worker(script=script).run() as worker,
    ):
        await ready(control, "worker-0")
        await register(control, tmp_path)
        for number in (1, 2):
            await control.inference.Route(ROUTE, metadata=control.as_("acme-user"))
            await eventually(lambda number=number: len(worker.commands) == number)
            await eventually(lambda: not control.plane.prefetch.waiting)
        adapter = await control.registry.GetAdapter(
            pb.GetAdapterRequest(name="bot"), metadata=control.as_("acme")
        )
        assert not adapter.problems
