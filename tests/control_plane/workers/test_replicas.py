"""Two replicas on one Redis: one leads, both serve."""

import asyncio
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from control_plane.errors import StoreUnavailable
from control_plane.placement.commands import Command, Evict
from control_plane.quotas.types import Limits, Quota
from control_plane.registry.types import AdapterKey
from control_plane.store.client import StoreClient, connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers import keys
from protos.inference.v1 import inference_pb2
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.adapter_files import write_adapter
from tests.control_plane.fake_worker import BASE_MODEL, Script
from tests.control_plane.replica import Replica, eventually, ready, replica


async def register(control: Replica, root: Path, name: str = "bot") -> str:
    message = pb.RegisterAdapterRequest(name=name, source=str(write_adapter(root / "acme" / name)))
    adapter = await control.registry.RegisterAdapter(message, metadata=control.as_("acme"))
    return str(adapter.revisions[0].digest)


async def test_exactly_one_replica_leads(redis: Redis, valkey: EmbeddedValkey, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as one, replica(connect(valkey.url), tmp_path) as other:
        await eventually(lambda: one.plane.leadership.token and other.plane.leadership.token)
        assert one.plane.leadership.leads != other.plane.leadership.leads


async def test_leader_commands_a_worker_whose_stream_another_replica_has(
    redis: Redis, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as leader, replica(connect(valkey.url), tmp_path) as follower:
        await eventually(lambda: follower.plane.leadership.token)
        assert leader.plane.leadership.leads
        async with follower.worker().run() as worker:
            await ready(leader, "worker-0")
            digest = await register(follower, tmp_path)
            await eventually(lambda: digest in worker.held)
            await ready(leader, "worker-0")
            await eventually(lambda: digest in leader.plane.fleet.get("worker-0").status.held)
            # And an operator's command from the replica without the stream.
            answer = await leader.registry.EvictAdapter(
                pb.EvictAdapterRequest(name="bot"), metadata=leader.as_("acme")
            )
            assert [report.ok for report in answer.reports] == [True]
            assert worker.verbs() == ["load", "evict"]


class LosesLetters(StoreClient):
    """A client whose letters to other replicas are lost once it is told so."""

    losing = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if self.losing and args[0] == "XADD" and str(args[1]).startswith(keys.inbox("")):
            raise StoreUnavailable("Redis gave no answer to XADD")
        return await super().execute_command(*args, **options)


async def test_a_lost_letter_to_one_worker_takes_no_other_workers_answer_along(
    redis: Redis, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    client = LosesLetters.from_pool(connect(valkey.url).connection_pool)
    async with (
        replica(client, tmp_path, num_holders=0) as one,
        replica(redis, tmp_path, num_holders=0) as other,
        one.worker("worker-0").run() as near,
        other.worker("worker-1").run(),
    ):
        await ready(one, "worker-0", "worker-1")
        digest = await register(one, tmp_path)
        client.losing = True
        request = pb.LoadAdapterRequest(name="bot", worker_ids=["worker-0", "worker-1"])
        answer = await one.registry.LoadAdapter(request, metadata=one.as_("acme"))
        client.losing = False
        reports = {report.worker_id: report for report in answer.reports}
        assert reports["worker-0"].ok
        assert digest in near.held
        assert not reports["worker-1"].ok
        assert "XADD" in reports["worker-1"].reason


async def test_inference_and_quotas_work_through_the_replica_without_the_stream(
    redis: Redis, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    async with (
        replica(redis, tmp_path) as one,
        replica(connect(valkey.url), tmp_path) as other,
        one.worker().run(),
    ):
        await ready(other, "worker-0")
        await one.plane.quotas.set(Quota(tenant="acme", limits=Limits(concurrent_requests=1)))
        request = inference_pb2.GenerateRequest(model=BASE_MODEL, text="hello")
        for control in (other, one):
            call = control.inference.Generate(request, metadata=control.as_("acme-user"))
            assert [m.WhichOneof("event") async for m in call][-1] == "finished"
        assert (await other.plane.quotas.usage("acme")).requests == 2


async def test_a_command_of_an_older_leader_is_refused_by_the_worker(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await redis.set(keys.LEADER, "another replica")
        await redis.incr(keys.FENCING_TOKEN)
        await eventually(lambda: worker.leases and worker.leases[-1].fencing_token == 2)
        command = Command("worker-0", 1, Evict(AdapterKey("acme", "bot"), "sha256:x"))
        outcome = await control.plane.dispatcher.send(command, fencing_token=1)
        assert not outcome.ok
        assert outcome.reason == "token 1 is older than 2"


async def test_a_command_ends_with_the_stream_of_its_worker_even_if_the_replica_says_nothing(
    redis: Redis, valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    client = LosesLetters.from_pool(connect(valkey.url).connection_pool)
    async with (
        replica(redis, tmp_path, num_holders=0, command_timeout_s=60.0) as one,
        replica(client, tmp_path, num_holders=0, command_timeout_s=60.0) as dumb,
        dumb.worker("worker-1").run() as worker,
    ):
        await ready(one, "worker-1")
        await register(one, tmp_path)
        worker.script = Script(answers=False)
        client.losing = True  # as if it were killed with the stream
        request = pb.LoadAdapterRequest(name="bot", worker_ids=["worker-1"])
        call = one.registry.LoadAdapter(request, metadata=one.as_("acme"))
        await eventually(lambda: worker.verbs() == ["load"])
        await worker.disconnect()
        async with asyncio.timeout(10):
            (report,) = (await call).reports
        assert not report.ok
        assert "before it answered" in report.reason
