"""FakeWorker: a worker without a model: real gRPC, the real protocol, scripted answers.

It says hello, keeps what it is told to hold, answers commands, and serves Generate, alone and carried,
with tokens it makes up. What a test wants otherwise it sets in `Script`. Also the worker of simulations.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import jwt
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from protos.fleet.v1 import fleet_pb2 as fleet
from protos.inference.v1 import inference_pb2 as inference
from protos.inference.v1 import inference_pb2_grpc
from protos.relay.v1 import relay_pb2 as relay
from protos.relay.v1 import relay_pb2_grpc
from protos.sync.v1 import sync_pb2 as sync
from protos.sync.v1 import sync_pb2_grpc

BASE_MODEL = "smollm2-135m-instruct"
# As real workers: a control plane pings every 5 s while its stream lasts, by default an attack.
SERVER_OPTIONS = (("grpc.http2.min_recv_ping_interval_without_data_ms", 2_500),)
_instances = itertools.count(1)


@dataclass
class Script:
    """How a worker behaves."""

    num_tokens: int = 3
    hold_after: int | None = None  # send so many deltas, then wait until cancelled
    load_s: float = 0.0  # what its receipts say that loading took
    refuse: Callable[[sync.Command], sync.Nack | None] = lambda command: None
    answers: bool = True  # commands at all
    reports: bool = True  # heartbeats at all
    status_error: grpc.StatusCode | None = None  # Generate fails with it, and with details
    error_after: int = 0  # deltas before that
    failing: set[str] = field(default_factory=set)  # digests whose requests fail
    carries: bool = True  # serves Relay; older releases do not
    fills_slots: bool = False  # a request's adapter is in a slot from then on


@dataclass
class FakeWorker:
    """One worker; `run` serves it for the time of a block."""

    control_plane: str
    key: str
    worker_id: str = "worker-0"
    script: Script = field(default_factory=Script)
    cpu_bytes: int = 1 << 30
    max_cpu_loras: int = 0
    base_model: str = BASE_MODEL
    held: dict[str, fleet.HeldAdapter] = field(default_factory=dict)
    commands: list[sync.Command] = field(default_factory=list)
    leases: list[sync.Lease] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)  # direct requests whose accounts are closed
    metadata: list[dict[str, str]] = field(default_factory=list)  # of Generate calls
    deadlines: list[float | None] = field(default_factory=list)
    requests: list[inference.GenerateRequest] = field(default_factory=list)
    num_streams: int = 0  # of Carry, ever
    num_alone: int = 0  # calls of Generate
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)  # streams that were held go on
    left: asyncio.Event = field(default_factory=asyncio.Event)  # the Sync stream has ended
    last_error: grpc.aio.AioRpcError | None = None
    instance_id: str = field(default_factory=lambda: f"instance-{next(_instances)}")

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self._outbox: asyncio.Queue[sync.WorkerMessage] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def run(self) -> AsyncIterator["FakeWorker"]:
        """Serve Inference and keep one Sync stream until the block ends."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        inference_pb2_grpc.add_InferenceServicer_to_server(FakeInference(self), self._server)
        if self.script.carries:
            relay_pb2_grpc.add_RelayServicer_to_server(FakeRelay(self), self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        await self.connect(grpc.aio.insecure_channel(self.control_plane))

    async def connect(self, channel: grpc.aio.Channel) -> None:
        """Keep a Sync stream over this channel."""
        self._channel = channel
        self._tasks = [asyncio.create_task(self._sync())]

    async def stop(self) -> None:
        """End as a killed process would: streams break, nothing is said."""
        await self.disconnect()
        await self._server.stop(None)
        await self._channel.close()

    async def disconnect(self) -> None:
        """End the Sync stream; Inference goes on."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _sync(self) -> None:
        self._outbox.put_nowait(sync.WorkerMessage(hello=self._hello()))
        stub = sync_pb2_grpc.WorkerSyncStub(self._channel)
        call = stub.Sync(_messages(self._outbox), metadata=(("authorization", f"Bearer {self.key}"),))
        reporting = asyncio.create_task(self._report())
        try:
            async for message in call:
                if message.HasField("lease"):
                    self.leases.append(message.lease)
                    self._changed.set()
                elif message.HasField("settled"):
                    self.settled.append(message.settled.request_id)
                elif message.HasField("report_whole"):
                    self.tell_whole()
                else:
                    self._carry_out(message.command)
        except grpc.aio.AioRpcError as error:
            self.last_error = error
        finally:
            call.cancel()
            reporting.cancel()
            self.left.set()

    def tell_whole(self) -> None:
        """Report; every report of this worker is whole."""
        self._changed.set()

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.script.reports:
                observed = sync.ObservedState(status=self.status())
                self._outbox.put_nowait(sync.WorkerMessage(observed=observed))

    def _hello(self) -> sync.Hello:
        return sync.Hello(
            worker_id=self.worker_id,
            instance_id=self.instance_id,
            address=self.address,
            base_model=self.base_model,
            base_model_digest="sha256:base",
            capacity=fleet.Capacity(
                max_loras=4,
                max_lora_rank=64,
                cpu_bytes=self.cpu_bytes,
                max_cpu_loras=self.max_cpu_loras,
                max_num_seqs=16,
                max_model_len=2048,
            ),
        )

    def tell(self, direct: sync.DirectRequest) -> None:
        """Say something of a direct request."""
        self._outbox.put_nowait(sync.WorkerMessage(direct=direct))

    def status(self) -> fleet.WorkerStatus:
        """What it holds."""
        adapters = list(self.held.values())
        return fleet.WorkerStatus(adapters=adapters, cpu_bytes_used=sum(held.cpu_bytes for held in adapters))

    def _carry_out(self, command: sync.Command) -> None:
        self.commands.append(command)
        if not self.script.answers:
            return
        nack = self._stale(command) or self.script.refuse(command)
        if nack is not None:
            nack.command_id = command.command_id
            self._outbox.put_nowait(sync.WorkerMessage(nack=nack))
            return
        size_bytes = self._apply(command)
        self._changed.set()
        ack = sync.Ack(command_id=command.command_id, elapsed_s=0.001, size_bytes=size_bytes)
        self._outbox.put_nowait(sync.WorkerMessage(ack=ack))

    def _stale(self, command: sync.Command) -> sync.Nack | None:
        newest = max((lease.fencing_token for lease in self.leases), default=0)
        if command.fencing_token >= newest:
            return None
        return sync.Nack(reason=f"token {command.fencing_token} is older than {newest}", terminal=True)

    def _apply(self, command: sync.Command) -> int:
        match command.WhichOneof("action"):
            case "load":
                return self._hold(command.load.adapter)
            case "reload":
                self.held = {
                    digest: held
                    for digest, held in self.held.items()
                    if (held.tenant, held.name)
                    != (command.reload.adapter.tenant, command.reload.adapter.name)
                }
                return self._hold(command.reload.adapter)
            case "evict":
                held = self.held.pop(command.evict.digest, None)
                return held.cpu_bytes if held else 0
            case "pin":
                self.held[command.pin.digest].pinned = bool(command.pin.tier)
        return 0

    def _hold(self, source: sync.AdapterSource) -> int:
        self.held[source.digest] = fleet.HeldAdapter(
            tenant=source.tenant,
            name=source.name,
            revision=source.revision,
            digest=source.digest,
            rank=source.rank,
            tier=inference.TIER_CPU,
            size_bytes=source.size_bytes,
            cpu_bytes=source.size_bytes,
        )
        return source.size_bytes

    def fill_slot(self, adapter: dict[str, Any]) -> inference.Tier.ValueType:
        """Put a granted revision into a slot; where it was found."""
        held = self.held.get(adapter["d"])
        found = held.tier if held else inference.TIER_SOURCE
        self.held[adapter["d"]] = fleet.HeldAdapter(
            tenant=adapter["t"],
            name=adapter["n"],
            revision=adapter["r"],
            digest=adapter["d"],
            tier=inference.TIER_SLOT,
            slot_bytes=100,
            cpu_bytes=10,
            disk_bytes=1,
        )
        self._changed.set()
        return found

    def verbs(self) -> list[str]:
        """The kinds of the commands it got, in order."""
        return [command.WhichOneof("action") or "" for command in self.commands]


class FakeInference(inference_pb2_grpc.InferenceServicer):
    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def Generate(self, request, context):  # type: ignore[no-untyped-def]
        self._worker.num_alone += 1
        metadata = dict(context.invocation_metadata() or ())
        try:
            async for message in answer(self._worker, request, metadata, context.time_remaining()):
                yield message
        except ScriptedError as error:
            await context.abort_with_status(rpc_status.to_status(error.status))

    async def Tokenize(self, request, context):  # type: ignore[no-untyped-def]
        self._worker.metadata.append(dict(context.invocation_metadata() or ()))
        return inference.TokenizeResponse(token_ids=list(request.text.encode()), max_model_len=2048)

    async def ListModels(self, request, context):  # type: ignore[no-untyped-def]
        return inference.ListModelsResponse()


class FakeRelay(relay_pb2_grpc.RelayServicer):
    """Carry; a call goes on when what it said is sent."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def Carry(self, requests, context):  # type: ignore[no-untyped-def]
        self._worker.num_streams += 1
        frames: asyncio.Queue[relay.Frame] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            await context.write(relay.Downward())
            tasks.create_task(self._read(requests, frames, tasks))
            while True:
                gathered = [await frames.get()]
                gathered += [frames.get_nowait() for _ in range(frames.qsize())]
                await context.write(relay.Downward(frames=gathered))
                for _ in gathered:
                    frames.task_done()

    async def _read(self, requests, frames, tasks):  # type: ignore[no-untyped-def]
        calls = {}
        async for upward in requests:
            if upward.HasField("open"):
                opened = upward.open
                calls[opened.call_id] = tasks.create_task(self._call(opened, frames))
            else:
                calls[upward.cancel.call_id].cancel()

    async def _call(self, opened, frames):  # type: ignore[no-untyped-def]
        request = inference.GenerateRequest.FromString(opened.request)
        left_s = opened.timeout_ms / 1000 if opened.HasField("timeout_ms") else None
        status = b""
        try:
            async for message in answer(self._worker, request, dict(opened.metadata), left_s):
                frames.put_nowait(relay.Frame(call_id=opened.call_id, message=message.SerializeToString()))
                await frames.join()
        except ScriptedError as error:
            status = error.status.SerializeToString()
        frames.put_nowait(relay.Frame(call_id=opened.call_id, end=status))


class ScriptedError(Exception):
    """How a generation fails when its script says so."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code.name)
        packed = AnyMessage()
        packed.Pack(error_details_pb2.ErrorInfo(reason="Scripted", domain="loraplane.worker"))
        number = code.value[0] or code_pb2.UNKNOWN
        self.status = status_pb2.Status(code=number, message="scripted", details=[packed])


async def answer(
    worker: FakeWorker,
    request: inference.GenerateRequest,
    metadata: dict[str, str],
    left_s: float | None,
) -> AsyncIterator[inference.GenerateResponse]:
    """One generation as the worker's script wants it."""
    script = worker.script
    worker.requests.append(request)
    worker.metadata.append(metadata)
    worker.deadlines.append(left_s)
    try:
        if script.status_error is not None and not script.error_after:
            raise ScriptedError(script.status_error)
        adapter = _granted(metadata)
        if adapter and adapter["d"] in script.failing:
            raise ScriptedError(grpc.StatusCode.INTERNAL)
        tier = worker.fill_slot(adapter) if adapter and script.fills_slots else inference.TIER_UNSPECIFIED
        yield inference.GenerateResponse(
            started=inference.Started(
                worker_id=worker.worker_id,
                base_model=worker.base_model,
                revision=adapter["r"] if adapter else 0,
                prompt_tokens=5,
                tier=tier,
                load_s=script.load_s,
            )
        )
        for number in range(script.num_tokens):
            if script.hold_after == number:
                worker.streaming.set()
                await worker.go_on.wait()
            if script.status_error is not None and script.error_after == number:
                raise ScriptedError(script.status_error)
            yield inference.GenerateResponse(
                delta=inference.Delta(text=f"t{number} ", token_ids=[number + 1])
            )
        yield inference.GenerateResponse(
            finished=inference.Finished(
                choices=[inference.FinishedChoice(reason=inference.FINISH_REASON_LENGTH)],
                usage=inference.Usage(prompt_tokens=5, completion_tokens=script.num_tokens),
            )
        )
    except asyncio.CancelledError:
        worker.cancelled.set()
        raise


async def _messages(outbox: "asyncio.Queue[sync.WorkerMessage]") -> AsyncIterator[sync.WorkerMessage]:
    # Of one stream: gRPC reads on for a while after its end, and must not take the next one's hello.
    while True:
        yield await outbox.get()


def _granted(metadata: dict[str, str]) -> dict[str, Any] | None:
    """The adapter of a call's grant; None for the base model."""
    claims = jwt.decode(metadata["loraplane-grant"], options={"verify_signature": False})
    return claims.get("ad")
