"""HeldByTenant: what live workers hold, by the tenant it belongs to.

Kept up to date worker by worker, so that asking costs what the tenant holds, not what the fleet does.
"""

from collections import defaultdict
from collections.abc import Iterator

from control_plane.workers.types import HeldAdapter, HeldBytes, Tier, Worker


class HeldByTenant:
    """An index of the fleet's reports."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, list[HeldAdapter]]] = {}  # tenant → worker → what it holds
        self._tenants: dict[str, set[str]] = {}  # worker → tenants

    def replace(self, worker: Worker) -> None:
        """Take a worker's last report in place of the one before; a lost worker holds nothing."""
        for tenant in self._tenants.pop(worker.worker_id, ()):
            by_worker = self._held[tenant]
            del by_worker[worker.worker_id]
            if not by_worker:
                del self._held[tenant]
        if not worker.live:
            return
        by_tenant: dict[str, list[HeldAdapter]] = defaultdict(list)
        for held in worker.status.adapters:
            by_tenant[held.key.tenant].append(held)
        for tenant, adapters in by_tenant.items():
            self._held.setdefault(tenant, {})[worker.worker_id] = adapters
        self._tenants[worker.worker_id] = set(by_tenant)

    def of(self, tenant: str) -> Iterator[tuple[str, HeldAdapter]]:
        """Yield worker and adapter of everything that is held for a tenant."""
        for worker_id, adapters in self._held.get(tenant, {}).items():
            for held in adapters:
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
