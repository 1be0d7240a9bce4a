"""The life of adapters in a worker: source or disk → CPU cache → slot, and out again.

Owns which revisions are held in which tier and under which names; knows nothing of requests.
Every method is called by the step loop between two steps. Reads and copies run on the load
queues; a slot is bound only here, at a step boundary, once its pages are written. A revision is
its digest; names merely point at it.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum

from data_plane.adapters.copies import Copies, Copy
from data_plane.adapters.cpu_cache import CpuCache
from data_plane.adapters.fetches import Fetch, Fetches
from data_plane.adapters.load_queue import LoadQueue
from data_plane.adapters.loader import AdapterLoader, Loaded
from data_plane.adapters.names import Names
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.adapters.slots import Slots
from data_plane.adapters.types import RankPool
from data_plane.errors import AdapterUnknown, Overloaded, WorkerError


class Place(Enum):
    """Where a revision stands on its way into a slot."""

    RESIDENT = "resident"
    ON_ITS_WAY = "on its way"
    NO_ROOM = "no room"  # leases and pins leave no slot or too few pages


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a resident made each step towards its slot."""

    read_s: float  # the read of its source began
    cached_s: float  # it was in the CPU cache
    copied_s: float  # the copy into its pages began
    bound_s: float  # it was in its slot
    tier: Tier  # where that read found it

    def seen_from(self, arrival_s: float) -> tuple[Tier, float]:
        """The tier where a request that arrived then found the revision, and the load time it waited."""
        if self.bound_s <= arrival_s:
            return Tier.SLOT, 0.0
        if self.cached_s <= arrival_s:
            return Tier.CPU, self.bound_s - max(arrival_s, self.copied_s)
        return self.tier, self.bound_s - max(arrival_s, self.read_s)


class AdapterManager:
    """Every adapter that the worker holds."""

    def __init__(
        self,
        *,
        loader: AdapterLoader,
        pool: RankPool,
        slots: Slots,
        cache: CpuCache,
        reads: LoadQueue[Loaded],
        copies: LoadQueue[None],
        clock: Callable[[], float],
        max_pages: int,
    ) -> None:
        self.slots = slots
        self.cache = cache
        self.names = Names()
        self.version = 0  # grows with every change of a tier, a lease or a pin
        self._changed: set[str] = set()
        self._pool = pool
        self._clock = clock
        self._max_pages = max_pages  # of one adapter of the largest rank served
        self._queues = (reads, copies)
        self._loader = loader
        self._fetches = Fetches(loader, cache, reads, clock)
        self._copies = Copies(pool, cache, copies, clock)
        self._reads: dict[str, tuple[float, float, Tier]] = {}  # begin, end and tier of the last read
        self._arrivals: dict[str, Arrival] = {}
        self._ranks: dict[str, int] = {}
        self._used_s: dict[str, float] = {}

    # Look-up

    @property
    def num_reads(self) -> int:
        """Reads of a source, ever."""
        return self._fetches.num_reads

    def held(self) -> Iterator[str]:
        """Digests in any tier."""
        yield from self.slots
        yield from (digest for digest in self.cache if digest not in self.slots)

    def holds(self, digest: str) -> bool:
        """Whether any tier has the revision."""
        return digest in self.slots or digest in self.cache

    def is_moving(self, digest: str) -> bool:
        """Whether the revision is being read or copied."""
        return digest in self._fetches or digest in self._copies

    def is_pinned(self, digest: str) -> bool:
        """Whether the revision stays in some tier on purpose."""
        return self.slots.is_pinned(digest) or self.cache.is_pinned(digest)

    def rank(self, digest: str) -> int:
        """Rank of a held revision."""
        return self._ranks[digest]

    def slot_bytes(self, digest: str) -> int:
        """Bytes that the revision takes in its slot: pages of the rank pool, and what lies beside."""
        pages = self.slots.pages_of(digest)
        return len(pages) * self._pool.page_bytes + self._pool.side_bytes_of(pages)

    def cpu_bytes(self, digest: str) -> int:
        """Bytes of host memory that the revision takes."""
        packed = self.cache.peek(digest)
        return packed.num_bytes if packed else 0

    @property
    def disk_bytes_used(self) -> int:
        """Bytes of the disk cache that are taken."""
        return self._loader.disk_bytes

    @property
    def slot_bytes_used(self) -> int:
        """Bytes of the rank pool that are taken, and of what lies beside."""
        return self.slots.num_used_pages * self._pool.page_bytes + self._pool.side_bytes

    def used_s(self, digest: str) -> float:
        """When the revision was last used, or came."""
        return self._used_s[digest]

    def changed(self, digest: str) -> None:
        """A tier, lease, pin or name of the revision has changed."""
        self.version += 1
        self._changed.add(digest)

    def take_changed(self) -> set[str]:
        """The digests that changed since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def arrival(self, digest: str) -> Arrival:
        """How a resident came into its slot."""
        return self._arrivals[digest]

    def recent_failure(self, digest: str) -> WorkerError | None:
        """Why the source could not be read a moment ago; None when a request should try it."""
        return None if self.holds(digest) else self._fetches.recent_failure(digest)

    # Use

    def lease(self, source: AdapterSource) -> int | None:
        """Look up and lease in one step: the slot, or None when the revision is not resident."""
        digest = source.revision.digest
        slot = self.slots.lease(digest)
        if slot is not None:
            self.names.add(source)
            self.cache.touch(digest)
            self._touch(digest)
        return slot

    def release(self, digest: str) -> None:
        """Give a lease back."""
        self.slots.release(digest)
        self._touch(digest)

    # Loading

    def fetch(self, source: AdapterSource, *, urgent: bool, again: bool = False) -> Fetch:
        """Have the revision in the CPU cache; see Fetches.fetch."""
        return self._fetches.fetch(source, urgent=urgent, again=again)

    def place(self, source: AdapterSource, keep: Collection[str] = (), *, urgent: bool = True) -> Place:
        """Bring a revision towards a slot as far as it goes now; `keep` are not evicted for it."""
        digest = source.revision.digest
        if digest in self.slots:
            return Place.RESIDENT
        if digest in self._copies:
            return Place.ON_ITS_WAY
        packed = self.cache.peek(digest)
        if packed is None:
            self.fetch(source, urgent=urgent)
            return Place.ON_ITS_WAY
        placement = self.slots.reserve(digest, packed.num_pages, keep, source.revision.tenant)
        if placement is None:
            return Place.NO_ROOM
        self._empty(placement.emptied)
        self.cache.touch(digest)
        self.names.add(source)
        self._copies.begin(digest, placement.pages)
        return Place.ON_ITS_WAY

    def is_in_the_way(self, holder: str, source: AdapterSource) -> bool:
        """Whether the resident `holder` could leave to make room for a revision that found none."""
        packed = self.cache.peek(source.revision.digest)
        num_pages = packed.num_pages if packed else 0
        return self.slots.is_in_the_way(holder, source.revision.tenant, num_pages)

    def advance(self) -> list[tuple[str, WorkerError]]:
        """Take in what the load queues finished; the digests that failed, each with its error."""
        failed = []
        for copy in self._copies.advance():
            if not copy.staged:
                self._settle(copy)
            if copy.error is not None:
                failed.append((copy.digest, copy.error))
        ended, evicted = self._fetches.advance()
        for fetch in ended:
            if fetch.error is not None:
                failed.append((fetch.digest, fetch.error))
            else:
                self._cached(fetch)
        for digest in evicted:
            self._forget_if_gone(digest)
        return failed

    # Replacing in place

    def stage(self, digest: str, old: str, keep: Collection[str] = ()) -> Copy | None:
        """Write a cached revision into fresh pages for the slot of `old`; None when there is no room."""
        packed = self.cache.peek(digest)
        if packed is None or digest in self._copies:
            return None
        placement = self.slots.stage(digest, packed.num_pages, keep, replaces=old)
        if placement is None:
            return None
        self._empty(placement.emptied)
        return self._copies.begin(digest, placement.pages, staged=True)

    def swap(self, old: str, copy: Copy) -> bool:
        """From the next step on the slot of `old`, with its leases, computes the staged revision.

        False, and the staged pages are free again, when the copy failed, `old` has left its slot
        meanwhile, or the staged revision has come into a slot of its own.
        """
        possible = copy.error is None and old in self.slots and copy.digest not in self.slots
        if possible:
            placement = self.slots.rebind(old, copy.digest)
            self._pool.bind(placement.slot, placement.pages, copy.packed)
            self._arrived(copy)
        else:
            self.slots.unstage(copy.digest)
        self._copies.settle(copy)
        self._touch(copy.digest)
        self._forget_if_gone(old)
        return possible

    # Leaving

    def evict(self, digest: str) -> int:
        """Drop an unleased revision from every tier, pins or not; the bytes that became free."""
        freed = self.slot_bytes(digest)
        if digest in self.slots:
            self._empty((self.slots.evict(digest),))
        freed += self.cache.remove(digest)
        self._forget_if_gone(digest)
        return freed

    def pin(self, digest: str, tier: Tier | None) -> None:
        """Keep a held revision in a tier; None takes the pins back."""
        if not self.holds(digest):
            raise AdapterUnknown(f"adapter {digest} is not held by this worker and cannot be pinned")
        if tier is Tier.SLOT and not self.slots.is_pinned(digest):
            self._check_room_beside_pins(digest)
        if digest in self.slots:
            self.slots.pin(digest, tier is Tier.SLOT)
        if digest in self.cache:
            self.cache.pin(digest, tier is Tier.CPU)
        self.changed(digest)

    def on_loaded(self, callback: Callable[[], None]) -> None:
        """Call this, from any thread, when `advance` has something to take in."""
        for queue in self._queues:
            queue.on_done(callback)

    def stop(self) -> None:
        """End the load queues, then what they read with."""
        for queue in self._queues:
            queue.stop()
        self._loader.close()

    def check(self) -> None:
        """Raise AssertionError unless slots, pages and cache are each consistent."""
        self.slots.check()
        self.cache.check()

    def _check_room_beside_pins(self, digest: str) -> None:
        # With every slot pinned any other adapter's requests would wait for ever (invariant 7).
        num_slots, num_pages = self.slots.room_beside_pins(digest)
        if num_slots < 1:
            raise Overloaded(f"pinning {digest} would leave none of {self.slots.num_slots} slots for others")
        if num_pages < self._max_pages:
            raise Overloaded(f"pinning {digest} would leave too few pages for an adapter of the largest rank")

    def _settle(self, copy: Copy) -> None:
        if copy.error is None:
            placement = self.slots.commit(copy.digest)
            self._pool.bind(placement.slot, placement.pages, copy.packed)
            self._arrived(copy)
            self._touch(copy.digest)
        else:
            self.slots.abandon(copy.digest)
        self._copies.settle(copy)

    def _arrived(self, copy: Copy) -> None:
        read_s, cached_s, tier = self._reads[copy.digest]
        self._arrivals[copy.digest] = Arrival(read_s, cached_s, copy.began_s, self._clock(), tier)

    def _cached(self, fetch: Fetch) -> None:
        packed = self.cache.peek(fetch.digest)
        if packed is not None:
            self.names.add(fetch.source)
            self._ranks[fetch.digest] = packed.rank
            self._reads[fetch.digest] = (fetch.started_s, self._clock(), fetch.tier)
            self._touch(fetch.digest)

    def _empty(self, slots: tuple[int, ...]) -> None:
        for slot in slots:
            self._pool.unbind(slot)
        for digest in [digest for digest in self._arrivals if digest not in self.slots]:
            del self._arrivals[digest]
            self._forget_if_gone(digest)

    def _touch(self, digest: str) -> None:
        self._used_s[digest] = self._clock()
        self.changed(digest)

    def _forget_if_gone(self, digest: str) -> None:
        self.changed(digest)
        if self.holds(digest) or digest in self._copies:
            return
        self.names.forget(digest)
        self._arrivals.pop(digest, None)
        self._ranks.pop(digest, None)
        self._reads.pop(digest, None)
        self._used_s.pop(digest, None)
