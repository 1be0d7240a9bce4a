"""Carried: the calls of one Carry stream, from their opening to their last frame.

Owns their tasks. A task wakes when its call begins and when it ends; between the two, events become
frames in the one callback that brings a step to the event loop, and one write sends them all. Invariants:
what fails a call ends that call alone; the end of the stream, however it comes, ends all of them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from data_plane.api import grants
from data_plane.api.generations import Generation, Generations
from data_plane.api.interceptors import status_of
from data_plane.api.malformed import checked, tolerant
from data_plane.api.outbox import Outbox
from data_plane.engine.events import Event
from data_plane.errors import Draining, InvalidRequest
from protos.inference.v1 import inference_pb2 as pb
from protos.relay.v1 import relay_pb2 as relay

_parse = tolerant(pb.GenerateRequest.FromString) or pb.GenerateRequest.FromString
Write = Callable[[relay.Downward], Awaitable[object]]


class CarriedCall:
    """A Sink that turns the events of a generation into frames at once."""

    def __init__(self, call_id: int, generation: Generation, outbox: Outbox) -> None:
        self._call_id = call_id
        self._generation = generation
        self._outbox = outbox
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, events: Sequence[Event]) -> None:
        """Say what the events say; nothing any more when nobody waits for it."""
        if self.ended.done():
            return
        try:
            for event in events:
                message = self._generation.message(event)
                self._outbox.say(self._call_id, message.SerializeToString())
        except Exception as error:  # the end of this call, and of no other in the step
            self.ended.set_exception(error)
        else:
            if self._generation.ended:
                self.ended.set_result(None)


class CarriedCalls:
    """The calls of one stream."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._outbox = Outbox()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._takes_more = True
        self._leaving = False

    async def run(self, requests: AsyncIterator[relay.Upward], write: Write) -> None:
        """Serve the stream until the caller has closed its side, or we leave, and all calls have ended."""
        async with asyncio.TaskGroup() as tasks:
            await write(relay.Downward())
            reading = tasks.create_task(self._read(requests, tasks))
            while (message := await self._outbox.take()) is not None:
                await write(message)
            reading.cancel()

    def leave(self) -> None:
        """Take no calls any more; the stream ends with the last one."""
        self._leaving = True
        self._no_more()

    async def _read(self, requests: AsyncIterator[relay.Upward], tasks: asyncio.TaskGroup) -> None:
        async for upward in requests:
            await self._outbox.room()
            match upward.WhichOneof("message"):
                case "open":
                    self._open(upward.open, tasks)
                case "cancel" if upward.cancel.call_id in self._tasks:
                    self._tasks[upward.cancel.call_id].cancel()
        self._no_more()

    def _open(self, opened: relay.Open, tasks: asyncio.TaskGroup) -> None:
        if opened.call_id in self._tasks:
            raise InvalidRequest("open.call_id", opened.call_id, "is that of a call that runs")
        task = self._tasks[opened.call_id] = tasks.create_task(self._call(opened))
        # Not at the end of the task's own code, which never runs when it is cancelled before it began.
        task.add_done_callback(lambda _: self._forget(opened.call_id))

    async def _call(self, opened: relay.Open) -> None:
        status = b""
        try:
            await self._generate(opened)
        except Exception as error:
            status = status_of(error).SerializeToString()
        self._outbox.end(opened.call_id, status)

    async def _generate(self, opened: relay.Open) -> None:
        if self._leaving:
            raise Draining("the worker stops")
        request = checked(_parse(opened.request))
        token = opened.metadata.get(grants.METADATA)
        remaining_s = opened.timeout_ms / 1000 if opened.HasField("timeout_ms") else None
        async with self._generations.admit(request, token, remaining_s) as generation:
            call = CarriedCall(opened.call_id, generation, self._outbox)
            generation.start(call)
            await call.ended

    def _forget(self, call_id: int) -> None:
        del self._tasks[call_id]
        self._end_if_done()

    def _no_more(self) -> None:
        self._takes_more = False
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self._takes_more and not self._tasks:
            self._outbox.close()
