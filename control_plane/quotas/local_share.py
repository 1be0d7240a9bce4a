"""LocalShare: what this process admits by itself while Redis is away.

A fixed number of requests a minute for each tenant and replica, whatever the tenant's own limits:
they cannot be read. So an outage lets through at most that number times the replicas. Nothing of it
is settled or counted in usage.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from control_plane.errors import QuotaExceeded
from control_plane.quotas.types import Reservation

LIMIT = "store_loss_requests_per_minute"
MAX_TENANTS = 10_000  # the one that asked longest ago is forgotten first


@dataclass(frozen=True, slots=True)
class _Level:
    requests: float
    at_s: float


class LocalShare:
    """One token bucket a tenant, in memory."""

    def __init__(self, requests_per_minute: int, clock: Callable[[], float]) -> None:
        self._most = requests_per_minute
        self._clock = clock
        self._levels: OrderedDict[str, _Level] = OrderedDict()

    def admit(self, tenant: str, request_id: str, tokens: int, adapter: str = "") -> Reservation:
        """Admit a request; raise QuotaExceeded when the tenant's share is used up."""
        now_s = self._clock()
        level = self._levels.pop(tenant, _Level(self._most, now_s))
        refilled = min(self._most, level.requests + (now_s - level.at_s) * self._most / 60)
        admitted = refilled >= 1
        self._levels[tenant] = _Level(refilled - admitted, now_s)
        while len(self._levels) > MAX_TENANTS:
            self._levels.popitem(last=False)
        if not admitted:
            raise QuotaExceeded(tenant, LIMIT, self._most, (1 - refilled) * 60 / self._most)
        return Reservation(tenant=tenant, request_id=request_id, tokens=tokens, adapter=adapter, local=True)
