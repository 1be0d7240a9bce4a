"""Session: one worker's Sync stream, from its hello to its end.

Owns what goes down the stream, what the worker reported on it and the answers that are still out. Knows
no Redis. Invariant: every command ends exactly once, by ACK, NACK, time-out or the end of the stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from control_plane.errors import NoWorker, StaleRevision
from control_plane.workers.reports import Observation, Reports
from control_plane.workers.types import Outcome, Worker
from protos.sync.v1 import sync_pb2 as sync

MAX_OUTBOX = 256  # commands waiting for a worker that reads slowly; more wait in their senders
LAST_WRITE_S = 1.0  # for the message under way when the stream ends

Send = Callable[[sync.ControlMessage], Awaitable[None]]


class Session:
    """One stream of one worker."""

    def __init__(self, worker: Worker, *, command_timeout_s: float) -> None:
        self.worker = worker
        self.unwritten = False  # the last report did not reach Redis
        self.reports = Reports()
        self.outbox: asyncio.Queue[sync.ControlMessage] = asyncio.Queue(MAX_OUTBOX)
        self._command_timeout_s = command_timeout_s
        self._answers: dict[str, asyncio.Future[Outcome]] = {}
        self._ended = asyncio.get_running_loop().create_future()

    async def command(self, command: sync.Command) -> Outcome:
        """Send a command and wait for its answer; raise NoWorker when the stream ends first."""
        if self._ended.done():
            raise _gone(self.worker)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._answers[command.command_id] = answer
        try:
            async with asyncio.timeout(self._command_timeout_s):
                await self.outbox.put(sync.ControlMessage(command=command))
                return await answer
        except TimeoutError:
            return Outcome(ok=False, reason=f"no answer within {self._command_timeout_s:g} s")
        finally:
            del self._answers[command.command_id]

    def answer(self, command_id: str, outcome: Outcome) -> None:
        """Take the answer to a command; one that nobody waits for any more is dropped."""
        waiting = self._answers.get(command_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome)

    def hear(self, report: sync.ObservedState, now_s: float) -> None:
        """Take a report; ask for a whole one when one before it is missing."""
        if not self.reports.hear(report, now_s):
            self._tell(sync.ControlMessage(report_whole=sync.ReportWhole()))

    def observe(self) -> Observation:
        """Take in what the worker has reported since."""
        observation = self.reports.take(self.worker.status)
        self.worker = replace(self.worker, status=observation.status)
        return observation

    def settled(self, request_id: str) -> None:
        """Tell the worker that a direct request's account is closed."""
        self._tell(sync.ControlMessage(settled=sync.DirectSettled(request_id=request_id)))

    def end(self) -> None:
        """No more comes from this stream: commands without an answer have none."""
        if not self._ended.done():
            self._ended.set_result(None)
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(_gone(self.worker))

    async def replaced(self) -> None:
        """Wait for the end, then end the stream too."""
        await asyncio.shield(self._ended)
        raise StaleRevision("session", self.worker.worker_id, "was replaced by a newer one")

    def _tell(self, message: sync.ControlMessage) -> None:
        # One that reads too slowly gives cause to say it again.
        with suppress(asyncio.QueueFull):
            self.outbox.put_nowait(message)


async def deliver(session: Session, send: Send) -> None:
    """Write what goes down, until cancelled."""
    while True:
        writing = asyncio.ensure_future(send(await session.outbox.get()))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The stream's status can follow a message, not overtake it: gRPC would refuse the status, and
            # the worker never hear of its end. One that does not read gets no more time than this.
            await asyncio.wait({writing}, timeout=LAST_WRITE_S)
            writing.cancel()
            # However it ends, of a worker that is gone nobody waits for it any more.
            writing.add_done_callback(_forget)
            raise


def _forget(writing: asyncio.Task[None]) -> None:
    if not writing.cancelled():
        writing.exception()


def _gone(worker: Worker) -> NoWorker:
    return NoWorker(f"worker {worker.worker_id!r} left before it answered")
