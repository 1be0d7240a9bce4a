"""HeldByTenant: what live workers hold, by the tenant it belongs to.

Kept up to date adapter by adapter, so that asking costs what the tenant holds, not what the fleet does,
and a report costs what changed.
"""

from collections.abc import Iterable, Iterator

from control_plane.workers.holdings import HeldAdapter, Tier
from control_plane.workers.types import HeldBytes, Worker

_ByDigest = dict[str, HeldAdapter]


class HeldByTenant:
    """An index of the fleet's reports."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, _ByDigest]] = {}  # tenant → worker → what it holds
        self._tenants: dict[str, set[str]] = {}  # worker → tenants

    def replace(self, worker: Worker) -> None:
        """Take all that a worker holds in place of what it held; a lost worker holds nothing."""
        for tenant in tuple(self._tenants.get(worker.worker_id, ())):
            self._drop(worker.worker_id, tenant)
        if worker.live:
            self.change(worker.worker_id, worker.status.adapters, ())

    def change(self, worker_id: str, changed: Iterable[HeldAdapter], gone: Iterable[HeldAdapter]) -> None:
        """Take what differs in what a worker holds."""
        for held in gone:
            of_worker = self._of(held.key.tenant, worker_id)
            of_worker.pop(held.digest, None)
            if not of_worker:
                self._drop(worker_id, held.key.tenant)
        for held in changed:
            self._of(held.key.tenant, worker_id)[held.digest] = held

    def of(self, tenant: str) -> Iterator[tuple[str, HeldAdapter]]:
        """Yield worker and adapter of everything that is held for a tenant."""
        for worker_id, adapters in self._held.get(tenant, {}).items():
            for held in adapters.values():
                yield worker_id, held

    def bytes_of(self, tenant: str) -> HeldBytes:
        """Return the bytes in each tier, and the slots."""
        held = [adapter for _, adapter in self.of(tenant)]
        return HeldBytes(
            slot_bytes=sum(one.slot_bytes for one in held),
            cpu_bytes=sum(one.cpu_bytes for one in held),
            disk_bytes=sum(one.disk_bytes for one in held),
            slots=sum(one.tier is Tier.SLOT for one in held),
        )

    def _of(self, tenant: str, worker_id: str) -> _ByDigest:
        self._tenants.setdefault(worker_id, set()).add(tenant)
        return self._held.setdefault(tenant, {}).setdefault(worker_id, {})

    def _drop(self, worker_id: str, tenant: str) -> None:
        tenants, by_worker = self._tenants[worker_id], self._held[tenant]
        tenants.discard(tenant)
        if not tenants:
            del self._tenants[worker_id]
        del by_worker[worker_id]
        if not by_worker:
            del self._held[tenant]
