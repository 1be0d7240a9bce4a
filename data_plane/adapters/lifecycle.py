"""The life of adapters in a worker: source or disk → CPU cache → slot, and out again.

Owns how revisions move between tiers, `Holdings` what is there; knows nothing of requests.
Every method is called by the step loop between two steps. Reads and copies run on the load
queues. A revision is its digest; names merely point at it.
"""

from collections.abc import Callable, Collection

from data_plane.adapters.arrivals import Arrival, Read
from data_plane.adapters.copies import Copies, Copy
from data_plane.adapters.cpu_cache import CpuCache
from data_plane.adapters.fetches import Fetch, Fetches
from data_plane.adapters.holdings import Holdings
from data_plane.adapters.load_queue import LoadQueue
from data_plane.adapters.loader import AdapterLoader, Loaded
from data_plane.adapters.residents import Place, Residents
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.adapters.slots import Slots
from data_plane.adapters.types import RankPool
from data_plane.errors import AdapterUnknown, Overloaded, WorkerError


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
        self.holdings = Holdings(slots=slots, cache=cache, loader=loader, pool=pool, clock=clock)
        self.names = self.holdings.names
        self.cpu_evictions = 0
        self._on_load: Callable[[Tier, float], object] = lambda tier, seconds: None
        self._clock = clock
        self._max_pages = max_pages  # of one adapter of the largest rank served
        self._queues = (reads, copies)
        self._loader = loader
        self._fetches = Fetches(loader, cache, reads, clock)
        self._residents = Residents(
            self.holdings,
            Copies(pool, cache, copies, clock),
            pool,
            clock=clock,
            on_bound=lambda seconds: self._on_load(Tier.CPU, seconds),
        )

    @property
    def version(self) -> int:
        """Grows with every change of a tier, a lease or a pin."""
        return self.holdings.version

    @property
    def num_reads(self) -> int:
        """Reads of a source, ever."""
        return self._fetches.num_reads

    @property
    def slot_bytes_used(self) -> int:
        """Bytes of the rank pool that are taken, and of what lies beside."""
        return self.holdings.slot_bytes_used

    @property
    def disk_bytes_used(self) -> int:
        """Bytes of the disk cache that are taken."""
        return self._loader.disk_bytes

    @property
    def slot_evictions(self) -> int:
        """Revisions that left a slot, ever; one that is replaced in place does not."""
        return self._residents.num_evicted

    @property
    def disk_evictions(self) -> int:
        """Revisions that left the disk cache for others, ever."""
        return self._loader.disk_evictions

    def holds(self, digest: str) -> bool:
        """Whether any tier has the revision."""
        return digest in self.holdings

    def is_moving(self, digest: str) -> bool:
        """Whether the revision is being read or copied."""
        return digest in self._fetches or self._residents.is_coming(digest)

    def changed(self, digest: str) -> None:
        """A name of the revision has changed."""
        self.holdings.changed(digest)

    def arrival(self, digest: str) -> Arrival:
        """How a resident came into its slot."""
        return self.holdings.arrivals.of(digest)

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
            self.holdings.touch(digest)
        return slot

    def release(self, digest: str) -> None:
        """Give a lease back."""
        self.slots.release(digest)
        self.holdings.touch(digest)

    # Loading

    def fetch(self, source: AdapterSource, *, urgent: bool, again: bool = False) -> Fetch:
        """Have the revision in the CPU cache; see Fetches.fetch."""
        return self._fetches.fetch(source, urgent=urgent, again=again)

    def place(self, source: AdapterSource, keep: Collection[str] = (), *, urgent: bool = True) -> Place:
        """Bring a revision towards a slot as far as it goes now; `keep` are not evicted for it."""
        digest = source.revision.digest
        if digest in self.slots:
            return Place.RESIDENT
        if self._residents.is_coming(digest):
            return Place.ON_ITS_WAY
        packed = self.cache.peek(digest)
        if packed is None:
            self.fetch(source, urgent=urgent)
            return Place.ON_ITS_WAY
        return self._residents.enter(source, packed, keep)

    def is_in_the_way(self, holder: str, source: AdapterSource) -> bool:
        """Whether the resident `holder` could leave to make room for a revision that found none."""
        packed = self.cache.peek(source.revision.digest)
        num_pages = packed.num_pages if packed else 0
        return self.slots.is_in_the_way(holder, source.revision.tenant, num_pages)

    def advance(self) -> list[tuple[str, WorkerError]]:
        """Take in what the load queues finished; the digests that failed, each with its error."""
        self.holdings.note_disk()
        failed = self._residents.advance()
        ended, evicted = self._fetches.advance()
        for fetch in ended:
            if fetch.error is not None:
                failed.append((fetch.digest, fetch.error))
            else:
                self._cached(fetch)
        self.cpu_evictions += len(evicted)
        for digest in evicted:
            self._residents.forget_if_gone(digest)
        return failed

    # Replacing in place

    def stage(self, digest: str, old: str, keep: Collection[str] = ()) -> Copy | None:
        """Write a cached revision into fresh pages for the slot of `old`; see Residents.stage."""
        return self._residents.stage(digest, old, keep)

    def swap(self, old: str, copy: Copy) -> bool:
        """Let the slot of `old` compute the staged revision; see Residents.swap."""
        return self._residents.swap(old, copy)

    # Leaving

    def evict(self, digest: str) -> int:
        """Drop an unleased revision from every tier, pins or not; the bytes that became free."""
        freed = self.holdings.slot_bytes(digest)
        self._residents.leave(digest)
        self.cpu_evictions += digest in self.cache
        freed += self.cache.remove(digest)
        self._residents.forget_if_gone(digest)
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

    def on_load(self, callback: Callable[[Tier, float], object]) -> None:
        """Call this as a load is taken in: the tier it read (CPU: into a slot) and its seconds."""
        self._on_load = callback

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

    def _cached(self, fetch: Fetch) -> None:
        packed = self.cache.peek(fetch.digest)
        if packed is not None:
            self.names.add(fetch.source)
            read = Read(fetch.started_s, self._clock(), fetch.tier)
            self.holdings.arrivals.read(fetch.digest, read)
            self._on_load(read.tier, read.elapsed_s)
            self.holdings.came(fetch.digest, packed.rank)
