"""Lanes: the requests that wait, one lane for each adapter and tenant.

Owns the order among waiting requests; knows nothing of slots or blocks. Within a lane the higher
priority goes first, then the earlier arrival; between lanes the caller's choice of adapters, then
the tenant served least.
"""

import heapq
from collections.abc import Iterable, Iterator

from data_plane.scheduler.fairness import VirtualCounters
from data_plane.scheduler.request import Request

Entry = tuple[int, int, Request]  # orders by priority, then arrival; arrivals are unique


class Lanes:
    """Waiting requests by digest (None: the base model), then by tenant."""

    def __init__(self, counters: VirtualCounters) -> None:
        self._counters = counters
        self._lanes: dict[str | None, dict[str, list[Entry]]] = {}
        self._waiting: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request.id in self._waiting

    def __iter__(self) -> Iterator[Request]:
        return iter(self._waiting.values())

    def add(self, request: Request) -> None:
        """Let a request wait."""
        lane = self._lanes.setdefault(request.digest, {}).setdefault(request.tenant, [])
        heapq.heappush(lane, (-request.priority, request.order, request))
        self._waiting[request.id] = request

    def remove(self, request: Request) -> None:
        """It waits no longer."""
        del self._waiting[request.id]
        tenants = self._lanes[request.digest]
        lane = [entry for entry in tenants[request.tenant] if entry[2] is not request]
        heapq.heapify(lane)
        self._replace(request, lane)

    def pop(self, request: Request) -> None:
        """Take the request that `first` returned out of its lane."""
        del self._waiting[request.id]
        lane = self._lanes[request.digest][request.tenant]
        heapq.heappop(lane)
        self._replace(request, lane)

    def first(self, digests: Iterable[str | None]) -> Request | None:
        """Who goes next among the requests for these adapters."""
        best: tuple[tuple[float, int, int], Request] | None = None
        for digest in digests:
            for tenant, lane in self._lanes.get(digest, {}).items():
                negative_priority, order, request = lane[0]
                key = (self._counters.served(tenant), negative_priority, order)
                if best is None or key < best[0]:
                    best = (key, request)
        return best[1] if best else None

    def head(self, digest: str) -> Request | None:
        """The first request that waits for an adapter."""
        return self.first((digest,))

    def waits_for(self, digest: str | None) -> bool:
        """Whether any request waits for an adapter."""
        return digest in self._lanes

    def requests(self, digest: str) -> list[Request]:
        """Every request that waits for an adapter."""
        return [entry[2] for lane in self._lanes.get(digest, {}).values() for entry in lane]

    def _replace(self, request: Request, lane: list[Entry]) -> None:
        tenants = self._lanes[request.digest]
        if lane:
            tenants[request.tenant] = lane
            return
        del tenants[request.tenant]
        if not tenants:
            del self._lanes[request.digest]
