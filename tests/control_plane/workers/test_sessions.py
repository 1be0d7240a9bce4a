"""One worker's stream: reports and answers do not wait for each other."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from control_plane.access.direct_grants import DirectGrants
from control_plane.placement.commands import Command, Evict
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import SlotClaims
from control_plane.quotas.types import Limits
from control_plane.registry.types import AdapterKey
from control_plane.store.client import connect
from control_plane.store.valkey import EmbeddedValkey
from control_plane.workers.convert_commands import command_to_proto
from control_plane.workers.direct import DirectRequests
from control_plane.workers.directory import Directory
from control_plane.workers.leader import Leadership
from control_plane.workers.sessions import Sessions
from control_plane.workers.types import StatusChange, Worker
from protos.fleet.v1 import fleet_pb2
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.replica import eventually


class SlowDirectory(Directory):
    """Writes reports only when it is told to, and remembers them."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.go_on = asyncio.Event()
        self.written: list[int] = []  # running requests, as reported

    async def report(
        self, worker: Worker, change: StatusChange | None, *, lease_s: float, whole: bool = False
    ) -> bool:
        self.written.append(worker.status.running_requests)
        await self.go_on.wait()
        return True


class Stream:
    """A worker's stream to a replica's sessions."""

    def __init__(self, redis: Redis, directory: Directory, valkey: EmbeddedValkey) -> None:
        self._up: asyncio.Queue[sync.WorkerMessage] = asyncio.Queue()
        self.sent: list[sync.ControlMessage] = []
        clock = asyncio.get_running_loop().time
        leadership = Leadership(connect(valkey.url), replica="r", lease_s=60.0, clock=clock)
        quotas, slots = Quotas(redis, Limits(), 60.0), SlotClaims(redis, Limits(), 60.0)
        self.sessions = Sessions(
            directory,
            leadership,
            DirectRequests(quotas, slots, DirectGrants(lambda: ()), reservation_ttl_s=60.0),
            replica="r",
            grant_keys=lambda: (),
            lease_s=60.0,
            command_timeout_s=5.0,
            new_id=lambda: "session",
            heard=lambda worker, lease_s: None,
        )
        self._tasks = [
            asyncio.create_task(leadership.run(_nothing)),
            asyncio.create_task(self.sessions.serve(self._messages(), self._send)),
        ]
        self.say(hello=sync.Hello(worker_id="w", instance_id="w-1", address="a:1"))

    def say(self, **message: Any) -> None:
        self._up.put_nowait(sync.WorkerMessage(**message))

    def report(self, **observed: Any) -> None:
        self.say(observed=sync.ObservedState(**observed))

    def was_sent(self, kind: str) -> bool:
        return any(one.HasField(kind) for one in self.sent)  # type: ignore[arg-type]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _messages(self) -> AsyncIterator[sync.WorkerMessage]:
        while True:
            yield await self._up.get()

    async def _send(self, message: sync.ControlMessage) -> None:
        self.sent.append(message)


async def test_while_a_report_is_written_answers_come_through_and_reports_become_one(
    redis: Redis, valkey: EmbeddedValkey
) -> None:
    directory = SlowDirectory(redis)
    stream = Stream(redis, directory, valkey)
    session = await eventually(lambda: stream.sessions.find("w"))
    for running in range(5):
        stream.report(status=fleet_pb2.WorkerStatus(running_requests=running))
        await eventually(lambda: directory.written)
    command = Command("w", 1, Evict(AdapterKey("acme", "bot"), "sha256:x"))
    message = command_to_proto(command, command_id="c-1", fencing_token=1)
    answer = asyncio.create_task(session.command(message))
    await eventually(lambda: stream.was_sent("command"))
    stream.say(ack=sync.Ack(command_id="c-1"))
    assert (await answer).ok
    directory.go_on.set()
    await eventually(lambda: directory.written[-1] == 4)
    assert directory.written == [0, 4]
    await stream.close()


async def test_a_worker_whose_report_is_missing_is_asked_for_a_whole_one(
    redis: Redis, valkey: EmbeddedValkey
) -> None:
    directory = Directory(redis)
    stream = Stream(redis, directory, valkey)
    await eventually(lambda: stream.was_sent("lease"))
    assert stream.sent[0].lease.takes_changes

    async def held() -> set[str]:
        return set((await directory.read("w")).worker.status.held)

    async def holds(*digests: str) -> bool:
        return await held() == set(digests)

    stream.report(sequence=1, status=_holding("a", "b"))
    stream.report(sequence=2, changes_only=True, status=_holding("c"), gone_digests=["a"])
    await eventually(lambda: holds("b", "c"))
    assert not stream.was_sent("report_whole")
    stream.report(sequence=4, changes_only=True, status=_holding("e"))
    await eventually(lambda: stream.was_sent("report_whole"))
    assert await holds("b", "c")
    stream.report(sequence=5, status=_holding("d", "e"))
    await eventually(lambda: holds("d", "e"))
    await stream.close()


def _holding(*digests: str) -> fleet_pb2.WorkerStatus:
    adapters = [fleet_pb2.HeldAdapter(tenant="acme", name=one, digest=one) for one in digests]
    return fleet_pb2.WorkerStatus(adapters=adapters)


async def _nothing(token: int) -> None:
    await asyncio.Event().wait()
