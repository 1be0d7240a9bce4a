"""The worker's stream to the control plane: says what it holds, does what it is told.

Owns the connection and its reconnects. One stream at a time: hello, then observed state (whole, later
what changed) on every change and as a heartbeat a few times a lease; commands come down and are answered
by ACK or NACK when done. A lost stream loses nothing: after the next hello the control plane derives
again what is missing. A worker that has drained is told by a lease when it may leave.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import structlog

from data_plane.direct import DirectRequests
from data_plane.engine.events import Command, CommandDone, Drain, EngineStatus
from data_plane.errors import AdapterRefused, InvalidRequest, StaleCommand, WorkerError
from data_plane.sync import convert
from data_plane.sync.fencing import Fence
from data_plane.sync.observed import Observed
from data_plane.texts import clipped
from protos.sync.v1 import sync_pb2 as pb
from protos.sync.v1 import sync_pb2_grpc

_log = structlog.get_logger(__name__)
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
HEARTBEATS_PER_LEASE = 4
DEFAULT_LEASE_S = 3.0
# A message; what makes one when it is its turn; None: the stream has ended.
Outbox: TypeAlias = "asyncio.Queue[pb.WorkerMessage | Callable[[], pb.WorkerMessage] | None]"


@dataclass(frozen=True, slots=True)
class EnginePort:
    """What the stream needs of the engine."""

    command: Callable[[Command], "Future[CommandDone]"]
    status: Callable[[], EngineStatus]


class SyncClient:
    """Keeps one Sync stream alive for as long as `run` is awaited."""

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        key: str,
        hello: pb.Hello,
        engine: EnginePort,
        direct: DirectRequests,
        replace_grant_keys: Callable[[dict[str, str]], None],
        on_connected: Callable[[bool], None] = lambda connected: None,
        on_leave: Callable[[], None] = lambda: None,
    ) -> None:
        self._stub = sync_pb2_grpc.WorkerSyncStub(channel)
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._hello = hello
        self._engine = engine
        self._direct = direct
        self._replace_grant_keys = replace_grant_keys
        self._on_connected = on_connected
        self._on_leave = on_leave
        self._drained = False
        self._changed = asyncio.Event()
        self._lease_s = DEFAULT_LEASE_S
        # Outlives streams: what was refused as stale stays stale after a reconnect.
        self._fence = Fence()

    def status_changed(self) -> None:
        """The engine's status changed: report it soon. Event-loop thread only."""
        self._changed.set()

    async def run(self) -> None:
        """Connect, and again after every loss, with jittered exponential backoff; until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            welcomed = await self._stream_once()
            self._on_connected(False)
            backoff_s = FIRST_BACKOFF_S if welcomed else min(2 * backoff_s, MAX_BACKOFF_S)
            # Jitter, so that a thousand workers do not dial a restarted control plane at once.
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311

    async def _stream_once(self) -> bool:
        """One stream until it ends; return whether it was ever welcomed."""
        outbox: Outbox = asyncio.Queue()
        outbox.put_nowait(pb.WorkerMessage(hello=self._hello))
        call = self._stub.Sync(_drain(outbox), metadata=self._metadata)
        tasks: set[asyncio.Task[None]] = set()
        observed = Observed()
        welcomed = False
        try:
            async for message in call:
                match message.WhichOneof("message"):
                    case "lease":
                        self._take_lease(message.lease)
                        observed.takes_changes = message.lease.takes_changes
                        if not welcomed:
                            welcomed = True
                            self._on_connected(True)
                            _own(tasks, self._report(outbox, observed))
                            _own(tasks, self._tell(outbox))
                    case "report_whole":
                        observed.tell_whole()
                        self._changed.set()
                    case "settled":
                        self._direct.settle(message.settled.request_id)
                    case _:
                        _own(tasks, self._carry_out(message.command, outbox))
        except grpc.aio.AioRpcError as error:
            _log.warning("sync stream lost", code=error.code().name, details=error.details())
        except StaleCommand as error:
            _log.warning("sync stream left", reason=str(error))
        finally:
            call.cancel()
            outbox.put_nowait(None)  # gRPC's own task that reads from it outlives a call that failed
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return welcomed

    def _take_lease(self, lease: pb.Lease) -> None:
        self._fence.raise_token(lease.fencing_token)
        self._lease_s = lease.ttl_s
        if lease.may_leave and self._drained:
            self._on_leave()
        if lease.grant_keys:
            self._replace_grant_keys({key.key_id: key.public_key_pem for key in lease.grant_keys})

    async def _report(self, outbox: Outbox, observed: Observed) -> None:
        written = asyncio.Event()

        def report() -> pb.WorkerMessage:
            written.set()
            return observed.report(self._engine.status(), self._fence.generation)

        while True:
            self._changed.clear()
            written.clear()
            outbox.put_nowait(report)
            await written.wait()  # made as it is written: behind a stalled stream changes become one report
            try:
                async with asyncio.timeout(self._lease_s / HEARTBEATS_PER_LEASE):
                    await self._changed.wait()
            except TimeoutError:
                continue  # nothing changed: a report of nothing is the heartbeat

    async def _tell(self, outbox: Outbox) -> None:
        self._direct.repeat()  # what the last stream had said may never have arrived
        while True:
            for word in await self._direct.news():
                outbox.put_nowait(pb.WorkerMessage(direct=convert.direct_to_proto(word)))

    async def _carry_out(self, message: pb.Command, outbox: Outbox) -> None:
        try:
            self._fence.pass_command(
                convert.adapter_name(message), token=message.fencing_token, generation=message.generation
            )
            command = convert.command_from_proto(message)
            # Shielded: when the stream is lost, the engine still ends what it began.
            done = await asyncio.shield(asyncio.wrap_future(self._engine.command(command)))
            # Done when the last request has ended: none can come from here on.
            self._drained = self._drained or isinstance(command, Drain)
        except WorkerError as error:
            terminal = isinstance(error, AdapterRefused | InvalidRequest | StaleCommand)
            _log.warning("command refused", command_id=message.command_id, reason=str(error))
            nack = pb.Nack(command_id=message.command_id, reason=clipped(str(error)), terminal=terminal)
            outbox.put_nowait(pb.WorkerMessage(nack=nack))
        except Exception:
            _log.exception("command failed", command_id=message.command_id)
            nack = pb.Nack(command_id=message.command_id, reason="internal error of the worker, see its log")
            outbox.put_nowait(pb.WorkerMessage(nack=nack))
        else:
            ack = pb.Ack(command_id=message.command_id, elapsed_s=done.elapsed_s, size_bytes=done.size_bytes)
            outbox.put_nowait(pb.WorkerMessage(ack=ack))


def _own(tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _drain(outbox: Outbox) -> AsyncIterator[pb.WorkerMessage]:
    while (message := await outbox.get()) is not None:
        yield message() if callable(message) else message
