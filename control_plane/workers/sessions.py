"""Sessions: one worker's Sync stream each, from its hello to its end.

A session owns what goes down the stream (leases, commands) and the answers that are still out.
It knows no adapters and no placement. Invariants: the lease is renewed in Redis by what the worker
says, never by the control plane alone, so a silent worker is lost after its lease; every command
ends exactly once, by ACK, NACK, time-out or the end of the stream.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import structlog

from control_plane.errors import InvalidArgument, NoWorker, StaleRevision, StoreUnavailable
from control_plane.workers import convert
from control_plane.workers.direct import DirectRequests
from control_plane.workers.directory import Directory
from control_plane.workers.leader import Leadership
from control_plane.workers.types import Outcome, Worker, WorkerStatus
from protos.sync.v1 import sync_pb2 as sync

LEASES_PER_TTL = 3
MAX_OUTBOX = 256  # commands waiting for a worker that reads slowly; more wait in their senders
LAST_WRITE_S = 1.0  # for the message under way when the stream ends
_log = structlog.get_logger(__name__)

Send = Callable[[sync.ControlMessage], Awaitable[None]]


class Session:
    """One stream of one worker."""

    def __init__(self, worker: Worker, *, command_timeout_s: float) -> None:
        self.worker = worker
        self.unwritten = False  # the last report did not reach Redis
        self.reported = asyncio.Event()
        self.newest = sync.ObservedState()  # what was reported last; those before it need not be written
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

    def observe(self, status: WorkerStatus) -> bool:
        """Take what the worker holds and does now; return whether that changed."""
        changed = status != self.worker.status
        self.worker = replace(self.worker, status=status)
        return changed

    def settled(self, request_id: str) -> None:
        """Tell the worker that a direct request's account is closed; one that reads too slowly asks again."""
        with suppress(asyncio.QueueFull):
            self.outbox.put_nowait(sync.ControlMessage(settled=sync.DirectSettled(request_id=request_id)))

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


class Sessions:
    """The sessions of this replica, by worker."""

    def __init__(
        self,
        directory: Directory,
        leadership: Leadership,
        direct: DirectRequests,
        *,
        replica: str,
        grant_keys: Callable[[], Iterable[tuple[str, str]]],
        lease_s: float,
        command_timeout_s: float,
        new_id: Callable[[], str],
        heard: Callable[[Worker, float], None],
        may_leave: Callable[[str], bool] = lambda worker_id: False,
    ) -> None:
        self._directory = directory
        self._direct = direct
        self._heard = heard
        self._may_leave = may_leave
        self._leadership = leadership
        self._replica = replica
        self._grant_keys = grant_keys
        self._lease_s = lease_s
        self._command_timeout_s = command_timeout_s
        self._new_id = new_id
        self._sessions: dict[str, Session] = {}

    def find(self, worker_id: str) -> Session | None:
        """Return a worker's session when it is with this replica."""
        return self._sessions.get(worker_id)

    async def serve(self, messages: AsyncIterator[sync.WorkerMessage], send: Send) -> None:
        """Serve one stream until it ends.

        Raises InvalidArgument (no hello), NoWorker (silent over its lease), StaleRevision (replaced).
        """
        session = await self._open(messages)
        try:
            async with asyncio.TaskGroup() as tasks:
                helpers = (
                    tasks.create_task(self._renew(session)),
                    tasks.create_task(_deliver(session, send)),
                    tasks.create_task(self._write_reports(session)),
                    tasks.create_task(session.replaced()),
                )
                await self._listen(session, messages)
                for helper in helpers:
                    helper.cancel()
        finally:
            await asyncio.shield(self._close(session))

    async def _open(self, messages: AsyncIterator[sync.WorkerMessage]) -> Session:
        first = await self._next(messages)
        if first is None or not first.HasField("hello") or not first.hello.worker_id:
            raise InvalidArgument("message", first and first.WhichOneof("message"), "must begin with a hello")
        worker = replace(
            convert.worker_from_hello(first.hello), session=self._new_id(), replica=self._replica
        )
        await self._leadership.known()
        await self._directory.hello(worker, lease_s=self._lease_s)
        session = Session(worker, command_timeout_s=self._command_timeout_s)
        older = self._sessions.get(worker.worker_id)
        self._sessions[worker.worker_id] = session
        if older is not None:
            older.end()
        _log.info("worker connected", worker_id=worker.worker_id, instance_id=worker.instance_id)
        return session

    async def _listen(self, session: Session, messages: AsyncIterator[sync.WorkerMessage]) -> None:
        while (message := await self._next(messages)) is not None:
            match message.WhichOneof("message"):
                case "observed":
                    session.newest = message.observed
                    session.reported.set()
                case "ack":
                    session.answer(message.ack.command_id, convert.outcome_from_ack(message.ack))
                case "nack":
                    session.answer(message.nack.command_id, convert.outcome_from_nack(message.nack))
                case "direct":
                    worker = session.worker
                    self._direct.hear(worker.session, worker.worker_id, message.direct, session.settled)
                case other:
                    raise InvalidArgument("message", other, "may not follow the hello")

    async def _next(self, messages: AsyncIterator[sync.WorkerMessage]) -> sync.WorkerMessage | None:
        try:
            async with asyncio.timeout(self._lease_s):
                return await anext(messages, None)
        except TimeoutError:
            raise NoWorker(f"nothing was heard for {self._lease_s:g} s") from None

    async def _write_reports(self, session: Session) -> None:
        """Write the newest report, again and again: what comes while one is written, is written as one.

        Answers to commands do not wait for it, and under load reports become fewer, not later.
        """
        while True:
            await session.reported.wait()
            session.reported.clear()
            changed = session.observe(convert.status_from_proto(session.newest.status))
            await self._report(session, changed=changed)

    async def _report(self, session: Session, *, changed: bool) -> None:
        try:
            renewed = await self._directory.report(
                session.worker, changed=changed or session.unwritten, lease_s=self._lease_s
            )
        except StoreUnavailable as error:
            # The worker lives, whatever Redis does: here it is known, other replicas lose it with its lease.
            if not session.unwritten:
                _log.warning("report not written", worker_id=session.worker.worker_id, reason=str(error))
            session.unwritten = True
            self._heard(session.worker, self._lease_s)
            return
        session.unwritten = False
        if not renewed:
            session.end()

    async def _renew(self, session: Session) -> None:
        while True:
            lease = sync.Lease(
                fencing_token=self._leadership.token,
                ttl_s=self._lease_s,
                grant_keys=[
                    sync.GrantKey(key_id=key_id, public_key_pem=pem) for key_id, pem in self._grant_keys()
                ],
                may_leave=self._may_leave(session.worker.worker_id),
            )
            await session.outbox.put(sync.ControlMessage(lease=lease))
            await asyncio.sleep(self._lease_s / LEASES_PER_TTL)

    async def _close(self, session: Session) -> None:
        session.end()
        worker = session.worker
        self._direct.leave(worker.session)
        if self._sessions.get(worker.worker_id) is session:
            del self._sessions[worker.worker_id]
        try:
            await self._directory.lose(worker)
        except StoreUnavailable as error:
            # Its lease ends the record just as well, a little later.
            _log.warning("lost worker not recorded", worker_id=worker.worker_id, reason=str(error))
        _log.info("worker disconnected", worker_id=worker.worker_id, instance_id=worker.instance_id)


async def _deliver(session: Session, send: Send) -> None:
    while True:
        writing = asyncio.ensure_future(send(await session.outbox.get()))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The stream's status can follow a message, not overtake it: gRPC would refuse the status, and
            # the worker never hear of its end. One that does not read gets no more time than this.
            await asyncio.wait({writing}, timeout=LAST_WRITE_S)
            if not writing.cancel():
                writing.exception()  # of a worker that is gone: nobody waits for it any more
            raise


def _gone(worker: Worker) -> NoWorker:
    return NoWorker(f"worker {worker.worker_id!r} left before it answered")
