"""Planner: keeps workers at what the registry says, for as long as this replica leads.

Owns the copy of the registry that planning reads, and the commands in flight. What to command is
`placement.plan`'s decision, what was answered is the ledger's. Invariant: nothing depends on a
command having arrived: whatever is missing is derived again from the next snapshot.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from control_plane.errors import NotFound, NoWorker
from control_plane.placement.commands import Command, Drain, Evict, Load
from control_plane.placement.plan import plan
from control_plane.registry.changes import ChangeKind
from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.fleet import Fleet
from control_plane.workers.ledger import Ledger
from control_plane.workers.outage import ride_out
from control_plane.workers.types import Outcome, Worker

# A worker reads adapters with one or two threads: a longer line would only run into time-outs.
MAX_IN_FLIGHT = 8
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What a planner works with."""

    registry: Registry
    fleet: Fleet
    ledger: Ledger
    dispatcher: Dispatcher
    num_holders: int
    clock: Callable[[], float]  # Unix time, as the ledger's

    async def lead(self, fencing_token: int) -> None:
        """Plan until cancelled; every command carries the token of this term."""
        await ride_out("planner", lambda: Planner(self, fencing_token).run())


class Planner:
    """One run of planning, from a fresh snapshot to its first failure."""

    def __init__(self, desk: Desk, fencing_token: int) -> None:
        self._desk = desk
        self._fencing_token = fencing_token
        self._adapters: dict[AdapterKey, Adapter] = {}
        self._version = 0
        self._wake = asyncio.Event()
        self._in_flight: dict[str, set[AdapterKey]] = defaultdict(set)

    async def run(self) -> None:
        """Read everything, then plan at every change."""
        await self._desk.fleet.known()
        await self._read_registry()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_registry())
            tasks.create_task(self._follow_fleet())
            while True:
                self._wake.clear()
                next_retry_s = self._send_due(tasks)
                await self._woken(next_retry_s)

    async def _read_registry(self) -> None:
        self._desk.ledger.forget()
        self._version = await self._desk.registry.version()
        async for adapter in self._desk.registry.all():
            self._adapters[adapter.key] = adapter
            await self._desk.ledger.load(adapter.key)
        await self._desk.ledger.load(Drain.key)

    async def _follow_registry(self) -> None:
        async for change in self._desk.registry.changes(self._version):
            if change.kind is ChangeKind.DELETED:
                self._adapters.pop(change.adapter.key, None)
            else:
                self._adapters[change.adapter.key] = change.adapter
            self._version = change.adapter.resource_version
            self._wake.set()

    async def _follow_fleet(self) -> None:
        seen: dict[str, object] = {}
        async for worker in self._desk.fleet.watch():
            # Most reports only say how busy a worker is, which is nothing to plan by.
            matters = _what_matters(worker)
            if seen.get(worker.worker_id) != matters:
                seen[worker.worker_id] = matters
                self._wake.set()

    async def _woken(self, next_retry_s: float | None) -> None:
        try:
            async with asyncio.timeout(next_retry_s):
                await self._wake.wait()
        except TimeoutError:
            return  # a refused command may be given again

    def _send_due(self, tasks: asyncio.TaskGroup) -> float | None:
        """Send what may be sent now; return in how many seconds something else may be."""
        now = self._desk.clock()
        later: list[float] = []
        workers = self._desk.fleet.workers()
        by_id = {worker.worker_id: worker for worker in workers}
        for command in plan(
            self._adapters, workers, version=self._version, num_holders=self._desk.num_holders
        ):
            worker, in_flight = by_id[command.worker_id], self._in_flight[command.worker_id]
            retry_at_s = self._desk.ledger.retry_at_s(worker, command)
            if retry_at_s is None or command.action.key in in_flight:
                continue
            if retry_at_s > now:
                later.append(retry_at_s - now)
            elif len(in_flight) < MAX_IN_FLIGHT:
                in_flight.add(command.action.key)
                tasks.create_task(self._send(worker, command))
        return min(later, default=None)

    async def _send(self, worker: Worker, command: Command) -> None:
        try:
            if not await self._overtaken(worker, command):
                outcome = await self._outcome(command)
                await self._desk.ledger.record(worker, command, outcome)
                _log_outcome(command, outcome)
        finally:
            self._in_flight[command.worker_id].discard(command.action.key)
            self._wake.set()

    async def _outcome(self, command: Command) -> Outcome:
        try:
            return await self._desk.dispatcher.send(command, fencing_token=self._fencing_token)
        except NoWorker as error:
            # An answer like any other: without it, a worker that cannot be reached is tried at once again.
            return Outcome(ok=False, reason=str(error))

    async def _overtaken(self, worker: Worker, command: Command) -> bool:
        """Whether something happened that this snapshot does not show yet."""
        match command.action:
            case Evict(key):
                # Registered a moment ago and loaded by a request, before its change came here?
                return await self._exists(key)
            case Load(key):
                # Evicted by an operator on another replica?
                await self._desk.ledger.load(key)
                retry_at_s = self._desk.ledger.retry_at_s(worker, command)
                return retry_at_s is None or retry_at_s > self._desk.clock()
            case _:
                return False

    async def _exists(self, key: AdapterKey) -> bool:
        try:
            return (await self._desk.registry.get(key)).key == key
        except NotFound:
            return False


def _what_matters(worker: Worker) -> object:
    held = tuple((held.digest, held.pinned) for held in worker.status.adapters)
    return worker.instance_id, worker.session, worker.state, held


def _log_outcome(command: Command, outcome: Outcome) -> None:
    log = _log.info if outcome.ok else _log.warning
    log(
        "command done" if outcome.ok else "command refused",
        verb=command.action.verb.value,
        adapter=str(command.action.key),
        worker_id=command.worker_id,
        generation=command.generation,
        reason=outcome.reason,
        elapsed_s=round(outcome.elapsed_s, 4),
    )
