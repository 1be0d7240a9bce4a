"""The stream that a line's generations share: what holds for one call whatever becomes of the others."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from redis.asyncio import Redis

from control_plane.api import carried_call
from control_plane.api.carrier import Carrier, Outgoing
from control_plane.api.line import MAX_CARRIED_BYTES
from protos.inference.v1 import inference_pb2 as pb
from protos.relay.v1 import relay_pb2 as relay
from protos.relay.v1 import relay_pb2_grpc
from tests.control_plane.api.test_relay import request
from tests.control_plane.fake_worker import Script
from tests.control_plane.replica import details, eventually, ready, replica

WAIT_S = 10
NUM_SEEDS = 7
Write = Callable[[relay.Downward], Awaitable[None]]
Serve = Callable[[AsyncIterator[relay.Upward], Write], Awaitable[None]]


class Scripted(relay_pb2_grpc.RelayServicer):
    """A worker's end of Carry that does what a test says, once it has taken the stream."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.take = asyncio.Event()
        self.take.set()
        self.num_streams = 0

    async def Carry(self, requests, context):  # type: ignore[no-untyped-def]
        self.num_streams += 1
        first = asyncio.create_task(anext(requests))
        await self.take.wait()
        assert not first.done()
        await context.write(relay.Downward())
        await self._serve(_after(first, requests), context.write)


async def _after(first: asyncio.Task[relay.Upward], rest: AsyncIterator[relay.Upward]):  # type: ignore[no-untyped-def]
    yield await first
    async for upward in rest:
        yield upward


@asynccontextmanager
async def carrying(serve: Serve) -> AsyncIterator[tuple[Carrier, Scripted]]:
    """A carrier to such a worker."""
    server, scripted = grpc.aio.server(), Scripted(serve)
    relay_pb2_grpc.add_RelayServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        carrier = Carrier(channel)
        yield carrier, scripted
        await carrier.close()
    await server.stop(None)


async def generate(carrier: Carrier, raw: bytes, timeout_s: float | None = None) -> list[bytes]:
    told: list[bytes] = []

    async def deliver(message: bytes) -> None:
        told.append(message)

    await carrier.generate(Outgoing(raw, timeout_s, ()), deliver)
    return told


def frame(call_id: int, message: bytes) -> relay.Frame:
    return relay.Frame(call_id=call_id, message=message)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
async def test_frames_mixed_at_random_reach_their_calls_in_order_and_whole(seed: int):
    rng, num_calls = random.Random(seed), 12

    async def serve(requests: AsyncIterator[relay.Upward], write: Write) -> None:
        left: dict[int, list[relay.Frame]] = {}
        async for upward in requests:
            call_id, wanted = upward.open.call_id, int(upward.open.request)
            left[call_id] = [frame(call_id, b"%d/%d" % (wanted, n)) for n in range(wanted)]
            end = b"" if wanted % 3 else status_pb2.Status(code=code_pb2.NOT_FOUND).SerializeToString()
            left[call_id].append(relay.Frame(call_id=call_id, end=end))
            if len(left) == num_calls:
                break
        while left:
            frames = [relay.Frame(call_id=10_000, message=b"of nobody")]
            for _ in range(rng.randrange(1, 30)):
                if left:
                    call_id = rng.choice(list(left))
                    frames.append(left[call_id].pop(0))
                    if not left[call_id]:
                        del left[call_id]
            await write(relay.Downward(frames=frames))

    async def one(carrier: Carrier, wanted: int) -> None:
        told: list[bytes] = []

        async def deliver(message: bytes) -> None:
            told.append(message)
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)  # clients are slow now and then

        call = carrier.generate(Outgoing(b"%d" % wanted, None, ()), deliver)
        if wanted % 3:
            await call
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert told == [b"%d/%d" % (wanted, n) for n in range(wanted)]

    async with carrying(serve) as (carrier, scripted):
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
            for wanted in rng.sample(range(60), num_calls):
                tasks.create_task(one(carrier, wanted))
        assert scripted.num_streams == 1


async def flood(requests: AsyncIterator[relay.Upward], write: Write) -> None:
    """Answer b"much" with sixteen messages of 1 MiB, anything else with itself, one call after another."""
    async for upward in requests:
        opened = upward.open
        if not upward.HasField("open"):
            continue
        large = opened.request == b"much"
        for _ in range(16 if large else 1):
            await write(
                relay.Downward(frames=[frame(opened.call_id, bytes(1 << 20) if large else opened.request)])
            )
        await write(relay.Downward(frames=[relay.Frame(call_id=opened.call_id, end=b"")]))


async def test_a_client_that_does_not_read_holds_up_nobody_and_is_let_go():
    async with carrying(flood) as (carrier, _), asyncio.timeout(WAIT_S):
        stalled, go_on = asyncio.Event(), asyncio.Event()

        async def stall(message: bytes) -> None:
            stalled.set()
            await go_on.wait()

        stalling = asyncio.create_task(carrier.generate(Outgoing(b"much", None, ()), stall))
        await stalled.wait()
        for _ in range(5):
            assert await generate(carrier, b"quick") == [b"quick"]
        go_on.set()
        with pytest.raises(carried_call.ClientBehind):
            await stalling


async def test_a_deadline_ends_a_call_of_a_silent_worker_and_tells_it():
    told: asyncio.Queue[relay.Upward] = asyncio.Queue()

    async def silent(requests: AsyncIterator[relay.Upward], write: Write) -> None:
        async for upward in requests:
            told.put_nowait(upward)

    async with carrying(silent) as (carrier, _), asyncio.timeout(WAIT_S):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(carrier, b"x", timeout_s=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        opened, cancelled = await told.get(), await told.get()
        assert 0 < opened.open.timeout_ms <= 50
        assert cancelled.cancel.call_id == opened.open.call_id


async def test_nothing_is_sent_before_the_worker_has_taken_the_stream():
    async with carrying(flood) as (carrier, scripted), asyncio.timeout(WAIT_S):
        scripted.take.clear()
        # Ended by its deadline: enough time for what is sent to have come.
        with pytest.raises(grpc.aio.AioRpcError):
            await generate(carrier, b"early", timeout_s=0.2)
        scripted.take.set()
        assert await generate(carrier, b"x") == [b"x"]
        assert scripted.num_streams == 1


async def test_a_lost_stream_is_opened_again_by_the_next_call():
    async def breaks(requests: AsyncIterator[relay.Upward], write: Write) -> None:
        async for upward in requests:
            if upward.open.request == b"break":
                return
            await write(relay.Downward(frames=[relay.Frame(call_id=upward.open.call_id, end=b"")]))

    async with carrying(breaks) as (carrier, scripted), asyncio.timeout(WAIT_S):
        assert await generate(carrier, b"x") == []
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(carrier, b"break")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await generate(carrier, b"x") == []
        assert scripted.num_streams == 3


async def test_generations_of_a_replica_share_one_stream_to_a_worker(redis: Redis, tmp_path: Path) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await asyncio.gather(*(_read(control) for _ in range(8)))
        assert (worker.num_streams, worker.num_alone, len(worker.requests)) == (1, 0, 8)


async def test_a_worker_of_an_older_release_gets_a_call_a_generation(redis: Redis, tmp_path: Path) -> None:
    script = Script(carries=False)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        answers = await asyncio.gather(*(_read(control) for _ in range(8)))
        assert {"".join(message.delta.text for message in answer) for answer in answers} == {"t0 t1 t2 "}
        assert (worker.num_streams, worker.num_alone) == (0, 8)
        usage = await control.plane.quotas.usage("acme")
        assert (usage.requests, usage.completion_tokens, usage.concurrent_requests) == (8, 24, 0)


async def test_a_request_that_gRPC_would_end_the_stream_for_is_a_call_of_its_own(
    redis: Redis, tmp_path: Path
) -> None:
    async with replica(redis, tmp_path) as control, control.worker().run() as worker:
        await ready(control, "worker-0")
        await _read(control, text="x" * (MAX_CARRIED_BYTES + 1))
        assert (worker.num_streams, worker.num_alone) == (0, 1)


async def test_all_clients_of_a_worker_that_dies_hear_that_it_is_unavailable(
    redis: Redis, tmp_path: Path
) -> None:
    script = Script(num_tokens=9, hold_after=2)
    async with replica(redis, tmp_path) as control, control.worker(script=script).run() as worker:
        await ready(control, "worker-0")
        reading = [asyncio.create_task(_read(control)) for _ in range(5)]
        await eventually(lambda: len(worker.requests) == 5)
        await worker.streaming.wait()
        await worker.stop()
        for error in await asyncio.gather(*reading, return_exceptions=True):
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "RetryInfo" in details(error)


async def _read(control: Any, text: str = "hello") -> list[pb.GenerateResponse]:
    asked = request()
    asked.text = text
    call = control.inference.Generate(asked, metadata=control.as_("acme-user"), timeout=WAIT_S)
    return [message async for message in call]
