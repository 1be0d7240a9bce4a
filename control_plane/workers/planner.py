"""Planner: keeps workers at what the registry says, for as long as this replica leads.

Owns the following of registry and fleet, and the sending. What to command is decided by
`placement.desired` (kept in the `picture`), what was answered is the ledger's, what is in flight is
`orders`'. Invariant: nothing depends on an event or a command having arrived: what is missing is
derived again when a worker says hello, when a refusal may be repeated, and in every round of the
`sweep`.

Each change is planned by itself: only the pairs (worker, adapter) that it concerns are looked at.
Long changes (a worker that joins or leaves) and the sweep give way to others every few milliseconds.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from control_plane.placement.commands import Load
from control_plane.registry.changes import ChangeKind
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.fleet import Fleet
from control_plane.workers.ledger import Ledger
from control_plane.workers.orders import Orders
from control_plane.workers.outage import ride_out
from control_plane.workers.pace import Pace
from control_plane.workers.picture import Picture
from control_plane.workers.plan_costs import Cause, PlanCosts
from control_plane.workers.settling import Settling
from control_plane.workers.sweep import Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What a planner works with."""

    registry: Registry
    fleet: Fleet
    ledger: Ledger
    dispatcher: Dispatcher
    num_holders: int
    clock: Callable[[], float]  # Unix time, as the ledger's
    sweep_s: float = 60.0
    costs: PlanCosts = field(default_factory=PlanCosts)  # of all terms

    async def lead(self, fencing_token: int) -> None:
        """Plan until cancelled; every command carries the token of this term."""
        await ride_out("planner", lambda: Planner(self, fencing_token).run())


class Planner:
    """One run of planning, from a fresh snapshot to its first failure."""

    def __init__(self, desk: Desk, fencing_token: int) -> None:
        self._desk = desk
        self._picture = Picture(desk.registry, desk.fleet, num_holders=desk.num_holders, costs=desk.costs)
        self._sweep = Sweep(desk.registry, desk.fleet, self._picture, every_s=desk.sweep_s)
        self._settling = Settling(desk.clock)
        self._orders = Orders(
            desk.ledger,
            desk.dispatcher,
            fencing_token=fencing_token,
            clock=desk.clock,
            ended=self._picture.look_at,
            exists=self._picture.exists,
        )

    async def run(self) -> None:
        """Read everything, then plan every change."""
        await self._desk.fleet.known()
        version = await self._read()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_registry(version))
            tasks.create_task(self._follow_fleet())
            tasks.create_task(self._sweep.run())
            while True:
                self._picture.changed.clear()
                await self._woken(self._send_due(tasks))

    async def _read(self) -> int:
        """Read the fleet, then the registry; return the version from which to follow it.

        In this order each adapter is ranked once. Nothing is sent before the end: until then whatever
        a worker holds looks deleted.
        """
        self._desk.ledger.forget()
        self._settling.joined()  # the workers of the leader before are about to come over
        for worker in self._desk.fleet.workers():
            await self._picture.observe(worker.worker_id, Cause.READ)
        version = await self._desk.registry.version()
        async for adapter in self._desk.registry.all():
            await self._picture.put(adapter, Cause.READ)
        return version

    async def _follow_registry(self, version: int) -> None:
        async for change in self._desk.registry.changes(version):
            adapter = change.adapter
            if change.kind is ChangeKind.DELETED:
                await self._picture.remove(adapter.key, adapter.resource_version, Cause.ADAPTER)
            else:
                await self._picture.put(adapter, Cause.ADAPTER)

    async def _follow_fleet(self) -> None:
        async for worker_id, keys in self._desk.fleet.follow():
            if self._picture.joins(worker_id):
                self._settling.joined()
            await self._picture.observe(worker_id, Cause.REPORT, keys)

    async def _woken(self, next_due_s: float | None) -> None:
        try:
            async with asyncio.timeout(next_due_s):
                await self._picture.changed.wait()
        except TimeoutError:
            return  # something postponed is due

    def _send_due(self, tasks: asyncio.TaskGroup) -> float | None:
        """Send what may be sent now; return in how many seconds something else may be."""
        now_s, pace, agenda = self._desk.clock(), Pace(time.perf_counter), self._picture.agenda
        agenda.ripen(now_s)
        while not pace.is_over and (pair := self._settling.release()) is not None:
            agenda.add([pair])
        for worker_id in agenda.workers():
            while not self._orders.full(worker_id):
                key = agenda.take(worker_id)
                if key is None:
                    break
                self._look(worker_id, key, now_s, tasks)
                if pace.is_over:
                    return 0.0
        due_s = [at_s for at_s in (agenda.next_s, self._settling.next_s) if at_s is not None]
        return max(0.0, min(due_s) - now_s) if due_s else None

    def _look(self, worker_id: str, key: AdapterKey, now_s: float, tasks: asyncio.TaskGroup) -> None:
        """Give a pair's next command, if there is one and its time has come."""
        if self._orders.busy(worker_id, key):
            return  # looked at again when that one is answered
        for command in self._picture.commands(worker_id, key):
            worker = self._desk.fleet.get(worker_id)
            retry_at_s = self._desk.ledger.retry_at_s(worker, command)
            if retry_at_s is None:
                continue
            if isinstance(command.action, Load) and self._settling.holds_back:
                self._settling.wait((worker_id, key))
            elif retry_at_s > now_s:
                self._picture.agenda.postpone((worker_id, key), retry_at_s)
            else:
                self._orders.give(worker, command, tasks)
                return
