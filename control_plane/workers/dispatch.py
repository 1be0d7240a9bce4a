"""Dispatch: a command to whichever replica has the worker's session, and its outcome back.

A session lives in one replica; the leader and the replica an operator calls may be others. Each
replica owns an inbox (a short stream in Redis) that the others post to. Invariant: a command is
delivered at most once; what is lost on the way is an outcome that never came, and is derived again.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from redis.asyncio import Redis

from control_plane.errors import NotFound, NoWorker
from control_plane.placement.commands import Command
from control_plane.store.client import dedicated
from control_plane.workers import keys
from control_plane.workers.convert_commands import command_to_proto
from control_plane.workers.fleet import Fleet
from control_plane.workers.outage import ride_out
from control_plane.workers.records import entries_of
from control_plane.workers.sessions import Sessions
from control_plane.workers.types import Outcome, Worker
from protos.sync.v1 import sync_pb2 as sync

BLOCK_MS = 2000  # below the client's reply timeout
MAX_LETTERS = 4096
INBOX_TTL_S = 60  # of a replica that is gone
POST_MARGIN_S = 2.0  # on top of the command's own time-out, for the way there and back


class Dispatcher:
    """Sends commands to workers, whichever replica has their sessions."""

    def __init__(
        self,
        redis: Redis,
        fleet: Fleet,
        sessions: Sessions,
        *,
        replica: str,
        command_timeout_s: float,
        new_id: Callable[[], str],
    ) -> None:
        self._redis = redis
        self._fleet = fleet
        self._sessions = sessions
        self._replica = replica
        self._timeout_s = command_timeout_s + POST_MARGIN_S
        self._new_id = new_id
        self._awaited: dict[str, asyncio.Future[Outcome]] = {}
        self._position = "0-0"  # of the inbox; kept over outages, so that nothing is done twice

    async def send(self, command: Command, *, fencing_token: int) -> Outcome:
        """Return the worker's answer; raise NoWorker when it cannot be reached or leaves first."""
        message = command_to_proto(command, command_id=self._new_id(), fencing_token=fencing_token)
        session = self._sessions.find(command.worker_id)
        if session is not None:
            return await session.command(message)
        return await self._send_by_post(command.worker_id, message)

    async def run(self) -> None:
        """Carry out what other replicas post, until cancelled."""
        await ride_out("inbox", self._read_inbox)

    async def _send_by_post(self, worker_id: str, message: sync.Command) -> Outcome:
        try:
            worker = self._fleet.get(worker_id)
        except NotFound:
            raise NoWorker(f"worker {worker_id!r} was never here") from None
        if not worker.live or worker.replica == self._replica:
            raise NoWorker(f"worker {worker_id!r} is not connected")
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._awaited[message.command_id] = outcome
        try:
            body = base64.b64encode(message.SerializeToString()).decode()
            await self._post(worker.replica, kind="command", worker=worker_id, body=body)
            async with asyncio.timeout(self._timeout_s):
                return await self._answer(outcome, worker)
        except TimeoutError:
            raise NoWorker(f"replica {worker.replica!r} of worker {worker_id!r} did not answer") from None
        finally:
            del self._awaited[message.command_id]

    async def _answer(self, outcome: asyncio.Future[Outcome], worker: Worker) -> Outcome:
        """The outcome; raise NoWorker when the worker's stream has ended before.

        A replica that was killed with the stream tells nobody.
        """
        left = asyncio.ensure_future(self._left(worker))
        either: set[asyncio.Future[Any]] = {outcome, left}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            left.cancel()
        if not outcome.done():
            raise NoWorker(f"worker {worker.worker_id!r} left replica {worker.replica!r} before it answered")
        return outcome.result()

    async def _left(self, worker: Worker) -> None:
        async with aclosing(self._fleet.follow()) as changes:
            async for worker_id, _ in changes:
                one = self._fleet.get(worker_id)
                if one.worker_id == worker.worker_id and not (one.live and one.session == worker.session):
                    return

    async def _post(self, replica: str, **letter: str) -> None:
        inbox = keys.inbox(replica)
        fields: Any = {**letter, "sender": self._replica}
        await self._redis.xadd(inbox, fields, maxlen=MAX_LETTERS, approximate=True)
        await self._redis.expire(inbox, INBOX_TTL_S)

    async def _read_inbox(self) -> None:
        reader = dedicated(self._redis)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    reply: Any = await reader.xread(
                        {keys.inbox(self._replica): self._position}, block=BLOCK_MS
                    )
                    for self._position, letter in entries_of(reply):
                        if letter["kind"] == "outcome":
                            self._take(letter)
                        else:
                            tasks.create_task(self._carry_out(letter))
        finally:
            await reader.aclose()

    def _take(self, letter: dict[str, str]) -> None:
        awaited = self._awaited.get(letter["command_id"])
        if awaited is None or awaited.done():
            return  # the sender gave up
        if letter["gone"]:
            awaited.set_exception(NoWorker(letter["gone"]))
        else:
            awaited.set_result(Outcome(**json.loads(letter["outcome"])))

    async def _carry_out(self, letter: dict[str, str]) -> None:
        message = sync.Command.FromString(base64.b64decode(letter["body"]))
        answer = {"kind": "outcome", "command_id": message.command_id, "gone": "", "outcome": ""}
        session = self._sessions.find(letter["worker"])
        try:
            if session is None:
                raise NoWorker(f"worker {letter['worker']!r} is not connected")
            answer["outcome"] = json.dumps(asdict(await session.command(message)))
        except NoWorker as error:
            answer["gone"] = str(error)
        await self._post(letter["sender"], **answer)
