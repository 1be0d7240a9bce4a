"""The sync client against a scripted control plane: real gRPC, one stream after another."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager

import grpc
import pytest

from data_plane.adapters.revision import Tier
from data_plane.direct import DirectRequests, DirectUsage
from data_plane.engine.events import CommandDone, EngineStatus, Load, Pin
from data_plane.errors import AdapterRefused
from data_plane.sync.client import EnginePort, SyncClient
from protos.registry.v1 import registry_pb2
from protos.sync.v1 import sync_pb2 as pb
from protos.sync.v1 import sync_pb2_grpc

EMPTY = EngineStatus(
    adapters=(), running_requests=0, waiting_requests=0, free_blocks=9, slot_bytes_used=0, cpu_bytes_used=0,
    computed_tokens=0, cold_loads=0, max_adapters_in_step=0, steps=0,
)  # fmt: skip
PIRATE = pb.AdapterSource(tenant="acme", name="pirate", revision=1, digest="sha256:ab", source="/a")


class ControlPlane(sync_pb2_grpc.WorkerSyncServicer):
    """Answers hello with a lease; what comes up is in `received`, what is put in `down` goes down."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[pb.WorkerMessage] = asyncio.Queue()
        self.down: asyncio.Queue[pb.ControlMessage | None] = asyncio.Queue()
        self.metadata: list[dict[str, str]] = []

    async def Sync(self, requests: AsyncIterator[pb.WorkerMessage], context: grpc.aio.ServicerContext):
        self.metadata.append(dict(context.invocation_metadata()))
        reader = asyncio.create_task(self._read(requests))
        try:
            while (message := await self.down.get()) is not None:
                yield message
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[pb.WorkerMessage]) -> None:
        async for message in requests:
            await self.received.put(message)

    async def next(self, kind: str) -> pb.WorkerMessage:
        async with asyncio.timeout(5):
            while (message := await self.received.get()).WhichOneof("message") != kind:
                continue
        return message

    def send_lease(self, token: int = 1, ttl_s: float = 3.0, *, takes_changes: bool = False) -> None:
        keys = [pb.GrantKey(key_id="k1", public_key_pem="pem")]
        lease = pb.Lease(fencing_token=token, ttl_s=ttl_s, grant_keys=keys, takes_changes=takes_changes)
        self.down.put_nowait(pb.ControlMessage(lease=lease))

    def send(self, **command) -> None:
        given = {"command_id": "c1", "generation": 1, "fencing_token": 1} | command
        self.down.put_nowait(pb.ControlMessage(command=pb.Command(**given)))


class ScriptedEngine:
    """Carries out commands as the test says."""

    def __init__(self) -> None:
        self.commands: list[object] = []
        self.error: Exception | None = None
        self.current = EMPTY

    def command(self, command) -> "Future[CommandDone]":
        self.commands.append(command)
        future: Future[CommandDone] = Future()
        if self.error:
            future.set_exception(self.error)
        else:
            future.set_result(CommandDone(elapsed_s=0.5, size_bytes=7))
        return future

    def status(self) -> EngineStatus:
        return self.current


@asynccontextmanager
async def connected(direct: DirectRequests | None = None):
    plane, engine, keys = ControlPlane(), ScriptedEngine(), {}
    server = grpc.aio.server()
    sync_pb2_grpc.add_WorkerSyncServicer_to_server(plane, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = SyncClient(
            channel=channel,
            key="secret",
            hello=pb.Hello(worker_id="w1"),
            engine=EnginePort(command=engine.command, status=engine.status),
            direct=direct or DirectRequests(),
            replace_grant_keys=keys.update,
        )
        task = asyncio.create_task(client.run())
        try:
            yield plane, engine, client, keys
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop(None)


async def test_it_says_hello_with_its_key_and_reports_once_welcomed():
    async with connected() as (plane, _, _, keys):
        assert (await plane.next("hello")).hello.worker_id == "w1"
        assert plane.metadata[0]["authorization"] == "Bearer secret"
        plane.send_lease()
        assert (await plane.next("observed")).observed.status.free_blocks == 9
        assert keys == {"k1": "pem"}


async def test_a_command_is_carried_out_and_acknowledged():
    async with connected() as (plane, engine, _, _):
        plane.send_lease()
        plane.send(load=pb.LoadCommand(adapter=PIRATE))
        ack = (await plane.next("ack")).ack
        assert (ack.command_id, ack.size_bytes) == ("c1", 7)
        assert isinstance(engine.commands[0], Load)
        assert engine.commands[0].source.revision.digest == "sha256:ab"


async def test_a_refused_adapter_is_a_terminal_nack_with_the_reason():
    async with connected() as (plane, engine, _, _):
        engine.error = AdapterRefused("rank 32 is above max_lora_rank 16")
        plane.send_lease()
        plane.send(load=pb.LoadCommand(adapter=PIRATE))
        nack = (await plane.next("nack")).nack
        assert nack.terminal
        assert nack.reason == "rank 32 is above max_lora_rank 16"


async def test_a_bug_behind_a_command_is_a_nack_without_internals():
    async with connected() as (plane, engine, _, _):
        engine.error = ZeroDivisionError("secret detail")
        plane.send_lease()
        plane.send(load=pb.LoadCommand(adapter=PIRATE))
        nack = (await plane.next("nack")).nack
        assert not nack.terminal
        assert "secret detail" not in nack.reason


async def test_a_command_of_an_older_leader_never_reaches_the_engine():
    async with connected() as (plane, engine, _, _):
        plane.send_lease(token=5)
        plane.send(load=pb.LoadCommand(adapter=PIRATE), fencing_token=4)
        assert "older" in (await plane.next("nack")).nack.reason
        assert engine.commands == []


async def test_taking_a_pin_back_reaches_the_engine_as_no_tier():
    async with connected() as (plane, engine, _, _):
        plane.send_lease()
        plane.send(pin=pb.PinCommand(digest="sha256:ab", tier=registry_pb2.PIN_TIER_UNSPECIFIED))
        await plane.next("ack")
        plane.send(pin=pb.PinCommand(digest="sha256:ab", tier=registry_pb2.PIN_TIER_SLOT))
        await plane.next("ack")
        assert engine.commands == [Pin("sha256:ab", None), Pin("sha256:ab", Tier.SLOT)]


async def test_a_change_is_reported_without_waiting_for_the_heartbeat():
    async with connected() as (plane, _, client, _):
        plane.send_lease(ttl_s=3600)
        await plane.next("observed")
        client.status_changed()
        await plane.next("observed")


async def test_reports_are_of_changes_where_they_are_taken_and_whole_when_asked_for_and_on_a_new_stream():
    async with connected() as (plane, _, client, _):
        told = []

        async def report() -> None:
            observed = (await plane.next("observed")).observed
            told.append((observed.sequence, observed.changes_only))

        plane.send_lease(ttl_s=3600, takes_changes=True)
        await report()
        client.status_changed()
        await report()
        plane.down.put_nowait(pb.ControlMessage(report_whole=pb.ReportWhole()))
        await report()
        plane.down.put_nowait(None)
        await plane.next("hello")
        plane.send_lease(ttl_s=3600, takes_changes=True)
        await report()
        assert told == [(1, False), (2, True), (3, False), (1, False)]


async def test_silence_is_broken_by_heartbeats():
    async with connected() as (plane, _, _, _):
        plane.send_lease(ttl_s=0.2)
        for _ in range(3):
            await plane.next("observed")


async def test_a_lost_stream_is_dialled_again_with_a_new_hello():
    async with connected() as (plane, _, _, _):
        await plane.next("hello")
        plane.send_lease()
        plane.down.put_nowait(None)
        await plane.next("hello")
        plane.send_lease()
        await plane.next("observed")


@pytest.mark.parametrize("ended_by", ["server", "lease of an older leader"])
async def test_after_any_end_commands_of_an_older_leader_stay_refused(ended_by):
    async with connected() as (plane, engine, _, _):
        plane.send_lease(token=5)
        await plane.next("observed")
        if ended_by == "server":
            plane.down.put_nowait(None)
        else:
            plane.send_lease(token=4)
        await plane.next("hello")
        plane.send_lease(token=5)
        plane.send(load=pb.LoadCommand(adapter=PIRATE), fencing_token=4)
        assert "older" in (await plane.next("nack")).nack.reason
        assert engine.commands == []


async def test_direct_requests_are_told_until_they_are_settled_on_every_stream():
    direct = DirectRequests()
    direct.begin("r1", "grant")
    async with connected(direct) as (plane, _, _, _):
        plane.send_lease()
        told = (await plane.next("direct")).direct
        assert (told.grant, told.HasField("usage")) == ("grant", False)
        direct.end("r1", DirectUsage(prompt_tokens=2, completion_tokens=3))
        told = (await plane.next("direct")).direct
        assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (2, 3)
        assert not told.usage.HasField("cold")
        plane.down.put_nowait(None)
        await plane.next("hello")
        plane.send_lease()
        assert (await plane.next("direct")).direct.HasField("usage")
        plane.down.put_nowait(pb.ControlMessage(settled=pb.DirectSettled(request_id="r1")))
        async with asyncio.timeout(5):
            await direct.idle()
