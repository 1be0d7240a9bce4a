"""The sweep: what planning never heard of is found, and the books are put right."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from redis.asyncio import Redis

from control_plane.registry.changes import AdapterChange
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey
from control_plane.resolvers.chain import ResolverChain
from control_plane.workers import keys
from control_plane.workers.plan_costs import Cause
from control_plane.workers.planner import Planner
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.replica import Replica, eventually, ready, replica

SWEEP_S = 0.05


class Deaf(Registry):
    """A registry whose changes never arrive."""

    async def changes(self, after: int) -> AsyncGenerator[AdapterChange, None]:  # type: ignore[override]
        await asyncio.Event().wait()
        yield


@asynccontextmanager
async def deaf_planner(redis: Redis, control: Replica) -> AsyncIterator[None]:
    """Plan for a replica, hearing of no change."""
    desk = control.plane.desk
    deaf = replace(desk, registry=Deaf(redis, ResolverChain([], lambda: 0.0)), sweep_s=SWEEP_S)
    task = asyncio.create_task(Planner(deaf, fencing_token=9).run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_changes_that_never_arrived_are_made_good_within_a_round(redis: Redis, tmp_path: Path) -> None:
    await redis.set(keys.LEADER, "another replica")  # so that nobody else plans
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        async with deaf_planner(redis, control):
            source = str(write_adapter(tmp_path / "acme" / "bot"))
            message = pb.RegisterAdapterRequest(name="bot", source=source)
            first = await control.registry.RegisterAdapter(message, metadata=control.as_("acme"))
            await eventually(lambda: first.revisions[0].digest in worker.held)
            source = str(write_adapter(tmp_path / "acme" / "next", fill=2.0))
            published = await control.registry.PublishRevision(
                pb.PublishRevisionRequest(name="bot", source=source), metadata=control.as_("acme")
            )
            await eventually(lambda: list(worker.held) == [published.revisions[1].digest])
            await control.registry.DeleteAdapter(
                pb.DeleteAdapterRequest(name="bot"), metadata=control.as_("acme")
            )
            await eventually(lambda: not worker.held)
            assert control.plane.desk.costs[Cause.SWEEP].pairs


async def test_what_a_request_loaded_before_its_registration_was_heard_of_is_not_evicted(
    redis: Redis, tmp_path: Path
) -> None:
    await redis.set(keys.LEADER, "another replica")
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        registry = control.plane.registry
        async with deaf_planner(redis, control):
            source = str(write_adapter(tmp_path / "acme" / "bot"))
            message = pb.RegisterAdapterRequest(name="bot", source=source)
            adapter = await control.registry.RegisterAdapter(message, metadata=control.as_("acme"))
            worker.fill_slot({"d": adapter.revisions[0].digest, "t": "acme", "n": "bot", "r": 1})
            costs = control.plane.desk.costs
            await eventually(lambda: costs[Cause.REPORT].pairs)
            await eventually(lambda: costs[Cause.ADAPTER].pairs or costs[Cause.SWEEP].pairs)
            assert (await registry.get(AdapterKey("acme", "bot"))).current_revision == 1
            assert "evict" not in worker.verbs()
