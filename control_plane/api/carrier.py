"""Carrier: the one stream over which all generations of a line travel, many messages in one.

Owns the stream and the calls on it. The first call opens it, and the first after a loss opens it again.
Invariants: a call ends with its stream; one that is left before its end is cancelled at the worker.
"""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from control_plane.api.carried_call import CarriedCall
from control_plane.api.status import error_of
from protos.relay.v1 import relay_pb2 as relay

METHOD = "/loraplane.relay.v1.Relay/Carry"
MAX_TIMEOUT_MS = (1 << 32) - 1
Deliver = Callable[[bytes], Awaitable[object]]
Metadata = tuple[tuple[str, str], ...]


class NotCarried(Exception):
    """The worker does not serve Carry: a release from before it."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A generation as it goes to a worker."""

    raw: bytes
    timeout_s: float | None  # None: no deadline
    metadata: Metadata


class Carrier:
    """Generations to one start of one worker."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stream: _Stream | None = None

    async def generate(self, outgoing: Outgoing, deliver: Deliver) -> None:
        """Deliver the messages of one generation, in order; raise AioRpcError, ClientBehind or NotCarried."""
        with self._live(outgoing.metadata).call(outgoing) as call, _deadline(call, outgoing.timeout_s):
            while messages := await call.take():
                for message in messages:
                    await deliver(message)

    async def close(self) -> None:
        """End every call."""
        if self._stream is not None:
            await self._stream.close()

    def _live(self, metadata: Metadata) -> "_Stream":
        if self._stream is None or self._stream.lost:
            self._stream = _Stream(self._channel, metadata)
        return self._stream


class _Stream:
    """One stream and its calls."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.lost = False
        self._ids = itertools.count(1)
        self._calls: dict[int, CarriedCall] = {}
        # A request and a few bytes of each call since the worker fell silent; keepalive ends that in 8 s.
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._taken = asyncio.Event()
        method: Any = channel.stream_stream(METHOD, None, None)
        self._rpc = method(self._upwards(), metadata=metadata)
        self._reading = asyncio.create_task(self._read())

    @contextmanager
    def call(self, outgoing: Outgoing) -> Iterator[CarriedCall]:
        """Open a call for the time of the block."""
        call_id = next(self._ids)
        call = self._calls[call_id] = CarriedCall()
        self._send(open=_opened(call_id, outgoing))
        try:
            yield call
        finally:
            if self._calls.pop(call_id, None) is not None:
                self._send(cancel=relay.Cancel(call_id=call_id))

    async def close(self) -> None:
        """End it and its calls."""
        self._reading.cancel()
        await asyncio.wait({self._reading})

    def _send(self, **message: Any) -> None:
        self._outgoing.put_nowait(relay.Upward(**message).SerializeToString())

    async def _upwards(self) -> AsyncIterator[bytes]:
        # Writing to a stream that is refused loses its status, and with it why.
        await self._taken.wait()
        while True:
            yield await self._outgoing.get()

    async def _read(self) -> None:
        error: Exception = _lost("the worker ended its stream")
        try:
            while (raw := await self._rpc.read()) is not grpc.aio.EOF:
                self._taken.set()
                for frame in relay.Downward.FromString(raw).frames:
                    self._pass_on(frame)
        except (grpc.aio.AioRpcError, DecodeError) as ended:
            error = _meaning(ended)
        finally:
            self._end(error)
            self._rpc.cancel()

    def _pass_on(self, frame: relay.Frame) -> None:
        if not frame.HasField("end"):
            call = self._calls.get(frame.call_id)
            if call is not None:  # else it was given up, and the worker does not know yet
                call.put(frame.message)
        elif (call := self._calls.pop(frame.call_id, None)) is not None:
            call.end(error_of(frame.end) if frame.end else None)

    def _end(self, error: Exception) -> None:
        self.lost = True
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(error)


@contextmanager
def _deadline(call: CarriedCall, timeout_s: float | None) -> Iterator[None]:
    """End the call when its time is up, whatever the worker does."""
    if timeout_s is None:
        yield
        return
    expired = _rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
    timer = asyncio.get_running_loop().call_later(timeout_s, call.end, expired)
    try:
        yield
    finally:
        timer.cancel()


def _opened(call_id: int, outgoing: Outgoing) -> relay.Open:
    opened = relay.Open(call_id=call_id, request=outgoing.raw, metadata=dict(outgoing.metadata))
    if outgoing.timeout_s is not None:
        opened.timeout_ms = min(math.ceil(max(0.0, outgoing.timeout_s) * 1000), MAX_TIMEOUT_MS)
    return opened


def _meaning(error: Exception) -> Exception:
    """What the end of a stream means to its calls."""
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return NotCarried()
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:  # it knows no grant of ours, so no call's
            return error
    return _lost(str(error))


def _lost(reason: str) -> grpc.aio.AioRpcError:
    return _rpc_error(grpc.StatusCode.UNAVAILABLE, reason)


def _rpc_error(code: grpc.StatusCode, reason: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), reason)
