"""Turns: which adapters get the slots when more wait than there are slots.

Owns the queue of adapters that wait for a slot and which residents drain; knows nothing of blocks
or chunks. A resident that keeps getting requests may be used for `turn_steps` steps from its
first admission; after that, if another adapter is ready and finds no room, the resident with the
least work left drains: it admits nobody until its slot has gone to the next in the queue, and then
queues up itself. So an adapter waits at most for those before it, each a turn and one request long.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest

from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.residents import Place
from data_plane.adapters.revision import AdapterSource
from data_plane.scheduler.fairness import VirtualCounters
from data_plane.scheduler.lanes import Lanes
from data_plane.scheduler.request import Request

TURN_STEPS = 32


class SlotTurns:
    """Adapters taking turns in the slots."""

    def __init__(
        self,
        adapters: AdapterManager,
        lanes: Lanes,
        counters: VirtualCounters,
        *,
        turn_steps: int = TURN_STEPS,
    ) -> None:
        self._adapters = adapters
        self._lanes = lanes
        self._counters = counters
        self._turn_steps = turn_steps
        self._queue: dict[str, None] = {}  # an ordered set: who waits for a slot, first come first
        self._since: dict[str, int] = {}  # step of the first admission of the turn
        self._residents: set[str] = set()  # at the last step
        self._draining: set[str] = set()
        self._blocked: Counter[str] = Counter()  # by a command: an eviction or a reload that drains
        self._step = 0

    def block(self, digest: str) -> None:
        """Admit no request of this adapter until `unblock`."""
        self._blocked[digest] += 1

    def unblock(self, digest: str) -> None:
        """Take one `block` back."""
        self._blocked[digest] -= 1
        self._blocked += Counter()  # drops what is no longer above zero

    def enqueue(self, digest: str) -> None:
        """A request waits for this adapter, which may be in no slot."""
        if digest not in self._adapters.slots:
            self._queue.setdefault(digest)

    def admitted(self, digest: str) -> None:
        """A request of this adapter begins; the first begins its turn."""
        self._since.setdefault(digest, self._step)

    def admissible(self) -> list[str]:
        """Residents whose requests may begin."""
        return [
            digest
            for digest in self._adapters.slots
            if digest not in self._draining and digest not in self._blocked
        ]

    def kept(self) -> set[str]:
        """Residents that are not evicted although nobody leases them: requests are about to."""
        return {digest for digest in self.admissible() if self._lanes.waits_for(digest)}

    def advance(self, running: Iterable[Request]) -> None:
        """One step has passed: bring waiting adapters towards slots, and make room when it is time."""
        self._step += 1
        self._notice_evictions()
        if not self._queue:
            self._draining.clear()
            return
        # Again after draining: a resident that nobody leases leaves at once.
        while (lacking := self._place_next()) and self._drain(lacking, running):
            pass

    def _notice_evictions(self) -> None:
        slots = self._adapters.slots
        # Also those that nobody was admitted to yet: their requests left the queue when they came.
        for digest in self._residents.difference(slots):
            self._since.pop(digest, None)
            self._draining.discard(digest)
            if self._lanes.waits_for(digest):
                self._queue.setdefault(digest)
        self._residents = set(slots)
        for digest in [
            digest for digest in self._queue if digest in slots or not self._lanes.waits_for(digest)
        ]:
            del self._queue[digest]

    def _place_next(self) -> list[AdapterSource]:
        """Move the next adapters on; those that are ready but find no room."""
        kept = self.kept()
        sources = [request.source for request in self._next() if request.source is not None]
        return [source for source in sources if self._adapters.place(source, kept) is Place.NO_ROOM]

    def _next(self) -> list[Request]:
        """The first request of each adapter that may take a slot next.

        One pool after the other, and within a pool one tenant after the other: the heads of a pool
        whose share is used up must not hide those of the others.
        """
        # No more than could be in slots and cache at once: reading further ahead would evict what
        # was read before it is used.
        count = min(self._adapters.slots.num_slots, self._adapters.cache.max_adapters)
        heads: dict[str, dict[str, list[Request]]] = {}
        for digest in self._queue:
            request = None if digest in self._blocked else self._lanes.head(digest)
            if request is not None:
                pool = heads.setdefault(self._adapters.slots.pool_of(request.tenant), {})
                pool.setdefault(request.tenant, []).append(request)
        served = self._counters.served
        tenants = [sorted(pool.items(), key=lambda item: served(item[0])) for pool in heads.values()]
        tenants.sort(key=lambda pool: served(pool[0][0]))
        pools = [_in_turn([requests for _, requests in pool]) for pool in tenants]
        return _in_turn(pools)[:count]

    def _drain(self, lacking: list[AdapterSource], running: Iterable[Request]) -> bool:
        """Have a resident drain for each that lacks room; whether one of them can leave at once."""
        slots, in_the_way = self._adapters.slots, self._adapters.is_in_the_way
        # Who drained for somebody who has gone meanwhile, and is in nobody's way, is admitted again.
        self._draining = {
            digest for digest in self._draining if any(in_the_way(digest, source) for source in lacking)
        }
        promised = [digest for digest in self._draining if slots.leases(digest) > 0]
        candidates = [digest for digest in self.admissible() if self._turn_is_over(digest)]
        if not candidates:
            return False
        left: Counter[str | None] = Counter()
        for request in running:
            left[request.digest] += request.remaining_tokens
        candidates.sort(key=lambda digest: left[digest])
        held = Counter(self._owner(digest) for digest in slots if not slots.is_pinned(digest))
        chosen = []
        for source in lacking:
            fits = partial(self._makes_room, source=source, held=held)
            leaving = _take(promised, fits)
            if not leaving:
                leaving = _take(candidates, fits)
                chosen += leaving
            for digest in leaving:
                held[self._owner(digest)] -= 1
                held[source.revision.tenant] += 1
        self._draining.update(chosen)
        return any(slots.leases(digest) == 0 for digest in chosen)

    def _makes_room(self, digest: str, *, source: AdapterSource, held: Counter[str]) -> bool:
        """Whether a resident is in the way, and gives way to this adapter's tenant.

        Only to its own tenant, or to one that holds fewer slots: otherwise a tenant that floods
        many adapters would turn the only adapter of another out of its slot every turn.
        """
        owner, tenant = self._owner(digest), source.revision.tenant
        gives_way = owner == tenant or held[owner] > held[tenant]
        return gives_way and self._adapters.is_in_the_way(digest, source)

    def _owner(self, digest: str) -> str:
        source = self._adapters.names.source(digest)
        return source.revision.tenant if source else ""

    def _turn_is_over(self, digest: str) -> bool:
        since = self._since.get(digest)
        return (
            since is not None
            and self._step - since >= self._turn_steps
            and not self._adapters.slots.is_pinned(digest)
        )


def _in_turn(queues: list[list[Request]]) -> list[Request]:
    """The first of each queue, then the second of each, and so on."""
    return [request for each in zip_longest(*queues) for request in each if request is not None]


def _take(digests: list[str], fits: Callable[[str], bool]) -> list[str]:
    """Take the first that fits out of a list; empty when none does."""
    for digest in digests:
        if fits(digest):
            digests.remove(digest)
            return [digest]
    return []
