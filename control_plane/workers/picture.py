"""Picture: what a planner knows of registry and fleet, and which pairs it has yet to look at.

Owns desired state and the agenda, and keeps the second at what the first answers. Knows neither how
changes are heard of nor how commands are sent. Invariant: a pair whose commands a change may have
changed is on the agenda when the change has been taken.
"""

import asyncio
import time
from collections.abc import Callable

from control_plane.errors import NotFound
from control_plane.placement.commands import Command
from control_plane.placement.desired import DRAIN, Desired
from control_plane.placement.holders import Pair
from control_plane.placement.plan import Rank, rank
from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.workers.agenda import Agenda
from control_plane.workers.fleet import Fleet
from control_plane.workers.pace import Pace
from control_plane.workers.plan_costs import Cause, PlanCosts
from control_plane.workers.types import WorkerState
from control_plane.workers.watchers import Keys

_FIRST = -(1 << 63)  # before every resource version


class Picture:
    """Desired state with its agenda."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        *,
        num_holders: int,
        costs: PlanCosts,
        clock: Callable[[], float] = time.thread_time,  # of this thread: what others took is no cost
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._desired = Desired(num_holders)
        self._costs = costs
        self._clock = clock
        self._pace = Pace(time.perf_counter)
        self._observing = asyncio.Lock()
        self.agenda = Agenda(self._rank)
        self.changed = asyncio.Event()  # something is on the agenda that was not

    def commands(self, worker_id: str, key: AdapterKey) -> list[Command]:
        """Return what a worker should be told about an adapter."""
        return self._desired.commands(worker_id, key)

    def adapter(self, key: AdapterKey) -> Adapter | None:
        """Return an adapter as it is planned by."""
        return self._desired.adapter(key)

    def adapters(self) -> list[AdapterKey]:
        """Return every adapter."""
        return list(self._desired.adapters())

    def joins(self, worker_id: str) -> bool:
        """Whether a worker, as it is now, takes adapters and did not when it was last observed."""
        ready = self._fleet.get(worker_id).state is WorkerState.READY
        return ready and not self._desired.is_ready(worker_id)

    def look_at(self, pair: Pair) -> None:
        """Put a pair on the agenda."""
        self.agenda.add([pair])
        self.changed.set()

    async def put(self, adapter: Adapter, cause: Cause, *, anew: bool = False) -> None:
        """Take an adapter as it is now."""
        self._take(cause, lambda: self._desired.put(adapter, anew=anew))
        await self._pace.rest()

    async def remove(self, key: AdapterKey, version: int, cause: Cause) -> None:
        """Take that an adapter was deleted."""
        self._take(cause, lambda: self._desired.remove(key, version))
        await self._pace.rest()

    async def observe(self, worker_id: str, cause: Cause, keys: Keys = None) -> None:
        """Take a worker as it is now, or of what it holds only these adapters.

        A long change lets others act in between, but no other worker's.
        """
        async with self._observing:
            chunks = self._desired.observe(self._fleet.get(worker_id), keys)
            pieces = 0
            while self._take(cause, lambda: next(chunks, None), new=pieces == 0):
                pieces += 1
                await self._pace.rest()

    async def exists(self, key: AdapterKey) -> bool:
        """Whether the registry has an adapter now; what it has is planned by from then on."""
        try:
            adapter = await self._registry.get(key)
        except NotFound:
            return False
        if adapter.key != key:
            return False  # the name is another's alias now
        await self.put(adapter, Cause.ADAPTER)
        return True

    async def recall(self) -> None:
        """Look again at what no adapter stands for: workers themselves, and what was deleted."""
        for pair in self._desired.pairs():
            if pair[1] == DRAIN or self._desired.adapter(pair[1]) is None:
                self.look_at(pair)
            await self._pace.rest()

    def _take(self, cause: Cause, piece: Callable[[], list[Pair] | None], *, new: bool = True) -> bool:
        """Do one piece of a change and count it; False when there was none left to do."""
        pairs, scores, began_s = self._desired.num_examined, self._desired.num_scores, self._clock()
        touched = piece()
        if touched:
            self.agenda.add(touched)
            self.changed.set()
        self._costs[cause].add(
            changes=int(new),
            pairs=self._desired.num_examined - pairs,
            scores=self._desired.num_scores - scores,
            seconds=self._clock() - began_s,
        )
        return touched is not None

    def _rank(self, key: AdapterKey) -> Rank:
        adapter = self._desired.adapter(key)
        # What is deleted makes room: first.
        return rank(adapter) if adapter else (False, _FIRST, key)
