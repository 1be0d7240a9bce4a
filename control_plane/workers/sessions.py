"""Sessions: the workers whose Sync streams this replica has, and what their streams do.

Knows no adapters and no placement. Invariant: the lease is renewed in Redis by what the worker says, never
by the control plane alone, so a silent worker is lost after its lease.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace

import structlog

from control_plane.errors import InvalidArgument, NoWorker, StoreUnavailable
from control_plane.workers import convert
from control_plane.workers.convert_commands import outcome_from_ack, outcome_from_nack
from control_plane.workers.direct import DirectRequests
from control_plane.workers.directory import Directory
from control_plane.workers.leader import Leadership
from control_plane.workers.reports import Observation
from control_plane.workers.session import Send, Session, deliver
from control_plane.workers.types import Worker
from protos.sync.v1 import sync_pb2 as sync

LEASES_PER_TTL = 3
_log = structlog.get_logger(__name__)


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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock  # Unix time
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
                    tasks.create_task(deliver(session, send)),
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
                    session.hear(message.observed, self._clock())
                case "ack":
                    session.answer(message.ack.command_id, outcome_from_ack(message.ack))
                case "nack":
                    session.answer(message.nack.command_id, outcome_from_nack(message.nack))
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
        """Write what was reported, again and again: what comes while one is written, is written as one.

        Answers to commands do not wait for it, and under load reports become fewer, not later.
        """
        while True:
            await session.reports.heard.wait()
            await self._report(session, session.observe())

    async def _report(self, session: Session, observation: Observation) -> None:
        try:
            renewed = await self._directory.report(
                session.worker,
                observation.change,
                lease_s=self._lease_s,
                whole=observation.whole or session.unwritten,
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
                takes_changes=True,
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
