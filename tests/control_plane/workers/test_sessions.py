"""One worker's stream: reports and answers do not wait for each other."""

import asyncio
from collections.abc import AsyncIterator

from redis.asyncio import Redis

from control_plane.access.direct_grants import DirectGrants
from control_plane.placement.commands import Command, Evict
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import SlotClaims
from control_plane.quotas.types import Limits
from control_plane.registry.types import AdapterKey
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers import convert
from control_plane.workers.direct import DirectRequests
from control_plane.workers.directory import Directory
from control_plane.workers.leader import Leadership
from control_plane.workers.sessions import Sessions
from control_plane.workers.types import Worker
from protos.fleet.v1 import fleet_pb2
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.replica import eventually


class SlowDirectory(Directory):
    """Writes reports only when it is told to, and remembers them."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.go_on = asyncio.Event()
        self.written: list[int] = []  # running requests, as reported

    async def report(self, worker: Worker, *, changed: bool, lease_s: float) -> bool:
        self.written.append(worker.status.running_requests)
        await self.go_on.wait()
        return True


async def test_while_a_report_is_written_answers_come_through_and_reports_become_one(
    redis: Redis, valkey: EmbeddedValkey
) -> None:
    directory = SlowDirectory(redis)
    leadership = Leadership(
        connect(valkey.url), replica="r", lease_s=60.0, clock=asyncio.get_running_loop().time
    )
    leading = asyncio.create_task(leadership.run(_nothing))
    up: asyncio.Queue[sync.WorkerMessage] = asyncio.Queue()
    sent: list[sync.ControlMessage] = []

    async def messages() -> AsyncIterator[sync.WorkerMessage]:
        while True:
            yield await up.get()

    async def send(message: sync.ControlMessage) -> None:
        sent.append(message)

    sessions = Sessions(
        directory,
        leadership,
        DirectRequests(
            Quotas(redis, Limits(), 60.0),
            SlotClaims(redis, Limits(), 60.0),
            DirectGrants(lambda: ()),
            reservation_ttl_s=60.0,
        ),
        replica="r",
        grant_keys=lambda: (),
        lease_s=60.0,
        command_timeout_s=5.0,
        new_id=lambda: "session",
        heard=lambda worker, lease_s: None,
    )
    serving = asyncio.create_task(sessions.serve(messages(), send))
    up.put_nowait(sync.WorkerMessage(hello=sync.Hello(worker_id="w", instance_id="w-1", address="a:1")))
    session = await eventually(lambda: sessions.find("w"))
    for running in range(5):
        status = fleet_pb2.WorkerStatus(running_requests=running)
        up.put_nowait(sync.WorkerMessage(observed=sync.ObservedState(status=status)))
        await eventually(lambda: directory.written)
    command = Command("w", 1, Evict(AdapterKey("acme", "bot"), "sha256:x"))
    message = convert.command_to_proto(command, command_id="c-1", fencing_token=1)
    answer = asyncio.create_task(session.command(message))
    await eventually(lambda: any(one.HasField("command") for one in sent))
    up.put_nowait(sync.WorkerMessage(ack=sync.Ack(command_id="c-1")))
    assert (await answer).ok
    directory.go_on.set()
    await eventually(lambda: directory.written[-1] == 4)
    assert directory.written == [0, 4]
    for task in (serving, leading):
        task.cancel()
    await asyncio.gather(serving, leading, return_exceptions=True)


async def _nothing(token: int) -> None:
    await asyncio.Event().wait()
