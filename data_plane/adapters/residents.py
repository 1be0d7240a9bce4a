"""Residents: cached revisions on their way into a slot, in it, and out again.

Owns the copies into the rank pool and binds a slot, at a step boundary, only once its pages are
written. Knows nothing of sources or requests. Step loop only.
"""

from collections.abc import Callable, Collection
from enum import Enum

from data_plane.adapters.copies import Copies, Copy
from data_plane.adapters.holdings import Holdings
from data_plane.adapters.revision import AdapterSource
from data_plane.adapters.types import PackedAdapter, RankPool
from data_plane.errors import WorkerError


class Place(Enum):
    """Where a revision stands on its way into a slot."""

    RESIDENT = "resident"
    ON_ITS_WAY = "on its way"
    NO_ROOM = "no room"  # leases and pins leave no slot or too few pages


class Residents:
    """Who computes in which slot, and who is about to."""

    def __init__(
        self,
        holdings: Holdings,
        copies: Copies,
        pool: RankPool,
        *,
        clock: Callable[[], float],
        on_bound: Callable[[float], object],
    ) -> None:
        """`on_bound` is told the seconds from the beginning of a copy until its slot was bound."""
        self.num_evicted = 0  # revisions that left a slot, ever; one that is replaced in place does not
        self._holdings = holdings
        self._slots = holdings.slots
        self._cache = holdings.cache
        self._copies = copies
        self._pool = pool
        self._clock = clock
        self._on_bound = on_bound

    def is_coming(self, digest: str) -> bool:
        """Whether the revision is being copied."""
        return digest in self._copies

    def enter(self, source: AdapterSource, packed: PackedAdapter, keep: Collection[str]) -> Place:
        """Begin to copy a cached revision into a slot, emptying others but `keep` for it."""
        digest = source.revision.digest
        placement = self._slots.reserve(digest, packed.num_pages, keep, source.revision.tenant)
        if placement is None:
            return Place.NO_ROOM
        self._empty(placement.emptied)
        self._cache.touch(digest)
        self._holdings.names.add(source)
        self._copies.begin(digest, placement.pages)
        return Place.ON_ITS_WAY

    def stage(self, digest: str, old: str, keep: Collection[str]) -> Copy | None:
        """Write a cached revision into fresh pages for the slot of `old`; None when there is no room."""
        packed = self._cache.peek(digest)
        if packed is None or digest in self._copies:
            return None
        placement = self._slots.stage(digest, packed.num_pages, keep, replaces=old)
        if placement is None:
            return None
        self._empty(placement.emptied)
        return self._copies.begin(digest, placement.pages, staged=True)

    def swap(self, old: str, copy: Copy) -> bool:
        """From the next step on the slot of `old`, with its leases, computes the staged revision.

        False, and the staged pages are free again, when the copy failed, `old` has left its slot
        meanwhile, or the staged revision has come into a slot of its own.
        """
        possible = copy.error is None and old in self._slots and copy.digest not in self._slots
        if possible:
            placement = self._slots.rebind(old, copy.digest)
            self._pool.bind(placement.slot, placement.pages, copy.packed)
            self._arrived(copy)
        else:
            self._slots.unstage(copy.digest)
        self._copies.settle(copy)
        self._holdings.touch(copy.digest)
        self.forget_if_gone(old)
        return possible

    def advance(self) -> list[tuple[str, WorkerError]]:
        """Bind what has been copied; the digests whose copies failed, each with its error."""
        failed = []
        for copy in self._copies.advance():
            if not copy.staged:
                self._settle(copy)
            if copy.error is not None:
                failed.append((copy.digest, copy.error))
        return failed

    def leave(self, digest: str) -> None:
        """Empty the slot of an unleased revision; no effect when it has none."""
        if digest in self._slots:
            self._empty((self._slots.evict(digest),))

    def forget_if_gone(self, digest: str) -> None:
        """A revision has left a tier: drop what is known of it when that was the last."""
        self._holdings.changed(digest)
        if not (digest in self._holdings or digest in self._copies):
            self._holdings.forget(digest)

    def _settle(self, copy: Copy) -> None:
        if copy.error is None:
            placement = self._slots.commit(copy.digest)
            self._pool.bind(placement.slot, placement.pages, copy.packed)
            self._arrived(copy)
            self._holdings.touch(copy.digest)
        else:
            self._slots.abandon(copy.digest)
        self._copies.settle(copy)

    def _arrived(self, copy: Copy) -> None:
        now_s = self._clock()
        self._holdings.arrivals.bound(copy.digest, copied_s=copy.began_s, bound_s=now_s)
        self._on_bound(now_s - copy.began_s)

    def _empty(self, slots: tuple[int, ...]) -> None:
        self.num_evicted += len(slots)
        for slot in slots:
            self._pool.unbind(slot)
        arrivals = self._holdings.arrivals
        for digest in [digest for digest in arrivals if digest not in self._slots]:
            arrivals.left_slot(digest)
            self.forget_if_gone(digest)
