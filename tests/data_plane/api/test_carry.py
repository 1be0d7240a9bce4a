"""Carry: many generations over one stream of a real server, on an engine without tensors."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import code_pb2, error_details_pb2, status_pb2
from prometheus_client import CollectorRegistry

from data_plane.api.generations import Generations, WorkerIdentity
from data_plane.api.grants import AUDIENCE, METADATA, GrantVerifier
from data_plane.api.interceptors import ErrorInterceptor
from data_plane.api.mailbox import Post, Sink
from data_plane.api.outbox import MAX_MESSAGE_BYTES, Outbox
from data_plane.api.prompts import Prompts
from data_plane.api.relay import RelayServicer
from data_plane.direct import DirectRequests
from data_plane.engine.assemble import load_threads
from data_plane.engine.thread import EngineThread
from data_plane.metrics.requests import RequestMetrics
from data_plane.scheduler.sampling import SamplingParams
from protos.inference.v1 import inference_pb2 as inference
from protos.relay.v1 import relay_pb2 as relay
from protos.relay.v1 import relay_pb2_grpc
from tests.data_plane.fakes import Bench, byte_tokenizer, oracle

KEY = Ed25519PrivateKey.generate()
PROMPT = (1, 2, 3)
WAIT_S = 10


def grant(request_id: str, **changed: object) -> str:
    claims = {"jti": request_id, "sub": "acme", "wid": "w1", "base": "m", "mx": 4000, "aud": AUDIENCE}
    times = {"iat": time.time(), "exp": time.time() + 30}
    return jwt.encode(claims | times | changed, KEY, algorithm="EdDSA", headers={"kid": "k"})


def opened(call_id: int, *, num_tokens: int = 4, token: str | None = None, **fields: object) -> relay.Upward:
    request = inference.GenerateRequest(
        token_ids=inference.TokenIds(ids=PROMPT),
        sampling=inference.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True),
    )
    metadata = {METADATA: grant(f"r{call_id}") if token is None else token}
    given = {"request": request.SerializeToString(), "metadata": metadata} | fields
    return relay.Upward(open=relay.Open(call_id=call_id, **given))


class Stream:
    """A client's end of Carry; notes what each call was told, and in which message."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None = None) -> None:
        metadata = ((METADATA, grant("stream") if token is None else token),)
        self.rpc = relay_pb2_grpc.RelayStub(channel).Carry(metadata=metadata)
        self.messages: list[relay.Downward] = []

    async def send(self, *messages: relay.Upward) -> None:
        for message in messages:
            await self.rpc.write(message)

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not reached():
                message = await self.rpc.read()
                assert message is not grpc.aio.EOF
                self.messages.append(message)

    def tokens(self, call_id: int) -> list[int]:
        return [token for told in self._told(call_id) for token in told.delta.token_ids]

    def end(self, call_id: int) -> status_pb2.Status | None:
        """How a call ended; None while it runs."""
        for frame in self._frames(call_id):
            if frame.HasField("end"):
                return status_pb2.Status.FromString(frame.end)
        return None

    def _told(self, call_id: int) -> list[inference.GenerateResponse]:
        frames = self._frames(call_id)
        return [inference.GenerateResponse.FromString(f.message) for f in frames if f.HasField("message")]

    def _frames(self, call_id: int) -> list[relay.Frame]:
        return [frame for told in self.messages for frame in told.frames if frame.call_id == call_id]


class Worker:
    """The Relay service on a bench's engine."""

    def __init__(self) -> None:
        bench = Bench(queues=load_threads(1), clock=time.monotonic, num_blocks=5000, max_model_len=4000)
        self.thread: EngineThread[Sink] = EngineThread(bench.engine, Post(asyncio.get_running_loop()))
        grants = GrantVerifier("w1")
        public = KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        grants.replace_keys({"k": public.decode()})
        identity = WorkerIdentity(worker_id="w1", base_model="m", base_digest="sha256:b", max_model_len=4000)
        generations = Generations(
            engine=self.thread,
            prompts=Prompts(_Tokenizer()),
            grants=grants,
            direct=DirectRequests(),
            metrics=RequestMetrics(CollectorRegistry(), time.monotonic),
            identity=identity,
        )
        self.relay = RelayServicer(generations, grants)

    async def free(self) -> bool:
        """Whether nothing of any request is held, as the engine's thread says."""
        status = await asyncio.wrap_future(self.thread.snapshot())
        return status.running_requests == 0 and status.waiting_requests == 0


class _Tokenizer:
    chat_template = None

    def __len__(self) -> int:
        return byte_tokenizer().get_vocab_size()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Worker, grpc.aio.Channel]]:
    worker = Worker()
    server = grpc.aio.server(interceptors=(ErrorInterceptor(),))
    relay_pb2_grpc.add_RelayServicer_to_server(worker.relay, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    worker.thread.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield worker, channel
    finally:
        await server.stop(None)
        await asyncio.to_thread(worker.thread.stop)


def expected(num_tokens: int) -> list[int]:
    sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    return oracle(None, PROMPT, sampling)


async def test_calls_that_share_a_stream_each_get_their_own_answer():
    async with serving() as (_, channel):
        stream = Stream(channel)
        lengths = {call_id: 3 + call_id for call_id in range(1, 7)}
        await stream.send(*(opened(call_id, num_tokens=n) for call_id, n in lengths.items()))
        await stream.until(lambda: all(stream.end(call_id) for call_id in lengths))
        for call_id, num_tokens in lengths.items():
            assert stream.tokens(call_id) == expected(num_tokens)
            assert stream.end(call_id) == status_pb2.Status()


async def test_what_one_step_has_for_all_calls_is_one_message():
    async with serving() as (_, channel):
        stream = Stream(channel)
        await stream.send(*(opened(call_id, num_tokens=2000) for call_id in (1, 2, 3)))
        await stream.until(lambda: all(len(stream.tokens(call_id)) > 2 for call_id in (1, 2, 3)))
        for _ in range(50):
            message = await stream.rpc.read()
            assert {frame.call_id for frame in message.frames} == {1, 2, 3}


async def test_a_reader_that_stalls_gets_fewer_and_larger_messages():
    outbox = Outbox()
    for number in range(1000):
        outbox.say(number % 7, b"token")
    message = await outbox.take()
    assert message is not None
    assert len(message.frames) == 1000


async def test_a_message_has_a_bound():
    outbox, large = Outbox(), bytes(MAX_MESSAGE_BYTES // 2)
    for _ in range(5):
        outbox.say(1, large)
    outbox.close()
    sizes = []
    while (message := await outbox.take()) is not None:
        sizes.append(len(message.frames))
    assert sum(sizes) == 5
    assert max(sizes) <= 2


async def test_a_cancelled_call_frees_the_engine_and_leaves_the_others_alone():
    async with serving() as (worker, channel):
        stream = Stream(channel)
        await stream.send(opened(1, num_tokens=3500), opened(2, num_tokens=50))
        await stream.until(lambda: stream.tokens(1) and stream.tokens(2))
        await stream.send(relay.Upward(cancel=relay.Cancel(call_id=1)))
        await stream.until(lambda: stream.end(2))
        assert stream.tokens(2) == expected(50)
        await stream.rpc.done_writing()
        async with asyncio.timeout(WAIT_S):  # the cancel may arrive after the last of 50 tokens
            while (message := await stream.rpc.read()) is not grpc.aio.EOF:
                stream.messages.append(message)
        assert await worker.free()
        assert len(stream.tokens(1)) < 3500


async def test_a_stream_that_is_lost_frees_all_its_calls():
    async with serving() as (worker, channel):
        stream = Stream(channel)
        await stream.send(*(opened(call_id, num_tokens=3500) for call_id in (1, 2, 3)))
        await stream.until(lambda: all(stream.tokens(call_id) for call_id in (1, 2, 3)))
        stream.rpc.cancel()
        async with asyncio.timeout(WAIT_S):
            while not await worker.free():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (lambda: opened(9, token=""), code_pb2.PERMISSION_DENIED),
        (lambda: opened(9, token=grant("x", wid="another")), code_pb2.PERMISSION_DENIED),
        (lambda: opened(9, num_tokens=4001), code_pb2.PERMISSION_DENIED),
        (lambda: opened(9, request=b"\x0a\xff\xff"), code_pb2.INVALID_ARGUMENT),
        (lambda: opened(9, request=b""), code_pb2.INVALID_ARGUMENT),
        (lambda: opened(9, token=grant("r1")), code_pb2.PERMISSION_DENIED),  # used by call 1
        (lambda: opened(9, num_tokens=900, timeout_ms=0), code_pb2.DEADLINE_EXCEEDED),
    ],
)
async def test_a_call_that_is_refused_says_why_and_leaves_the_others_alone(refused, code: int):
    async with serving() as (_, channel):
        stream = Stream(channel)
        await stream.send(opened(1, num_tokens=40), refused(), opened(2, num_tokens=40))
        await stream.until(lambda: all(stream.end(call_id) for call_id in (1, 2, 9)))
        assert stream.tokens(1) == stream.tokens(2) == expected(40)
        status = stream.end(9)
        assert status.code == code
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.domain == "loraplane.worker"


@pytest.mark.parametrize("token", ["", "x.y.z", "expired"])
async def test_a_stream_without_a_grant_is_refused(token: str):
    token = grant("stream", exp=time.time() - 60) if token == "expired" else token
    async with serving() as (_, channel):
        stream = Stream(channel, token)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.rpc.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_two_calls_of_one_id_end_the_stream():
    async with serving() as (_, channel):
        stream = Stream(channel)
        await stream.send(opened(1, num_tokens=3500), opened(1, num_tokens=3))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.until(lambda: False)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_ends_when_its_caller_is_done_and_all_calls_have_ended():
    async with serving() as (_, channel):
        stream = Stream(channel)
        await stream.send(opened(1, num_tokens=40))
        await stream.rpc.done_writing()
        await stream.until(lambda: stream.end(1))
        assert stream.tokens(1) == expected(40)
        assert await stream.rpc.code() is grpc.StatusCode.OK


async def test_a_worker_that_leaves_ends_what_runs_and_takes_no_more():
    async with serving() as (worker, channel):
        stream = Stream(channel)
        # So long that it still runs when the second call arrives, on a busy machine too.
        await stream.send(opened(1, num_tokens=3500))
        await stream.until(lambda: stream.tokens(1))
        worker.relay.leave()
        await stream.send(opened(2))
        await stream.until(lambda: stream.end(1) and stream.end(2))
        assert stream.tokens(1) == expected(3500)
        assert stream.end(2).code == code_pb2.UNAVAILABLE
        assert await stream.rpc.code() is grpc.StatusCode.OK
