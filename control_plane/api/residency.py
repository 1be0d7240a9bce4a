"""Residency: the slot that a request needs on its worker, under its owner's limit of slots and loads.

When the owner's slots are all taken, the one that was idle longest makes room: it is evicted from
its worker before the claim is made again. Only when requests use every one of them is the request
refused. Owners without such limits cost nothing here.
"""

from dataclasses import replace

from control_plane.errors import NotFound
from control_plane.quotas.slots import Claim, Place, SlotClaims, SlotsFull, Wish
from control_plane.quotas.types import Reservation
from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, AdapterKey, Target
from control_plane.workers.fleet import Fleet
from control_plane.workers.holdings import HeldAdapter, Tier
from control_plane.workers.operator import Operator
from control_plane.workers.types import Worker

_WARM = frozenset({Tier.SLOT, Tier.CPU})
Resident = dict[Place, HeldAdapter]


class Residency:
    """Claims slots for requests."""

    def __init__(self, slots: SlotClaims, fleet: Fleet, registry: Registry, operator: Operator) -> None:
        self._slots = slots
        self._fleet = fleet
        self._registry = registry
        self._operator = operator

    async def claim(self, target: Target, worker: Worker, reservation: Reservation) -> Claim | None:
        """Claim the target's slot on a worker; None when nothing limits it. Raises QuotaExceeded."""
        adapter, revision = target.adapter, target.revision
        if adapter is None or revision is None or reservation.local:
            return None
        if adapter.key.tenant == reservation.tenant and not reservation.limits_slots:
            return None
        resident = self._resident(adapter.key.tenant)
        held = worker.status.held.get(revision.digest)
        wish = Wish(
            owner=adapter.key.tenant,
            adapter=adapter.key.name,
            place=Place(worker.worker_id, revision.digest),
            request_id=reservation.request_id,
            cold=held is None or held.tier not in _WARM,
            resident=tuple(resident),
            resident_of_adapter=_of(adapter, resident),
        )
        try:
            return await self._claim(wish, adapter, resident)
        except SlotsFull as full:
            raise full.refusal from None

    async def _claim(self, wish: Wish, adapter: Adapter, resident: Resident) -> Claim:
        try:
            return await self._slots.claim(wish)
        except SlotsFull as full:
            victim = self._idle_longest(adapter, resident, full)
            await self._evict(victim, resident[victim].key, full)
            left = {place: held for place, held in resident.items() if place != victim}
            return await self._slots.claim(
                replace(wish, resident=tuple(left), resident_of_adapter=_of(adapter, left), vacated=victim)
            )

    def _resident(self, tenant: str) -> Resident:
        return {
            Place(worker_id, held.digest): held
            for worker_id, held in self._fleet.held(tenant)
            if held.tier is Tier.SLOT
        }

    def _idle_longest(self, adapter: Adapter, resident: Resident, full: SlotsFull) -> Place:
        idle = [
            place
            for place, held in resident.items()
            if place not in full.running
            and not held.leases
            and not held.pinned
            and (held.key == adapter.key or not full.of_adapter)
        ]
        if not idle:
            raise full
        return min(idle, key=lambda place: (resident[place].used_s, place))

    async def _evict(self, victim: Place, key: AdapterKey, full: SlotsFull) -> None:
        try:
            adapter = await self._registry.get(key)
        except NotFound:
            raise full from None  # deleted: the planner evicts it
        reports = await self._operator.evict(adapter, [victim.worker_id], cancel_running=False)
        if not all(report.outcome.ok for report in reports):
            raise full


def _of(adapter: Adapter, resident: Resident) -> tuple[Place, ...]:
    return tuple(place for place, held in resident.items() if held.key == adapter.key)
