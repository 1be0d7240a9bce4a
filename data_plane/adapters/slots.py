"""Slots: which adapter revision occupies which place in the rank pool.

Owns slots, the pages behind them, leases and pins; knows nothing of files, tensors, gRPC or
scheduling. A slot is free, reserved (its pages are being written; nobody computes with it) or
resident. A leased or pinned slot is never evicted; among the rest the longest unused of the same
tenants' pool goes first. No pool exceeds its share of slots and pages.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from data_plane.adapters.pages import PageAllocator
from data_plane.adapters.shares import REST, Amounts, CachePool, Occupant, Shares


@dataclass(frozen=True, slots=True)
class Placement:
    """A slot, its pages, and the slots that were emptied to make room."""

    slot: int
    pages: tuple[int, ...]
    emptied: tuple[int, ...] = ()


@dataclass(slots=True)
class _Resident:
    slot: int
    pages: tuple[int, ...]
    pool: str  # whose share it takes
    leases: int = 0
    pinned: bool = False


class Slots:
    """The places of `num_slots` revisions, keyed by digest."""

    def __init__(self, num_slots: int, pages: PageAllocator, pools: Sequence[CachePool] = ()) -> None:
        self.num_slots = num_slots
        self._pages = pages
        self._free = list(range(num_slots - 1, -1, -1))
        self._reserved: dict[str, Placement] = {}
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # longest unused first
        self._staged: dict[str, tuple[int, ...]] = {}
        self._shares = Shares((num_slots, pages.num_pages), pools)
        self._pools: dict[str, str] = {}  # of what is reserved or staged, by digest

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __iter__(self) -> Iterator[str]:
        return iter(self._residents)

    def __len__(self) -> int:
        return len(self._residents)

    def lease(self, digest: str) -> int | None:
        """Look up and lease in one step: the slot, or None when the revision is not resident."""
        # One step, because an eviction between look-up and lease hands out a reused slot.
        resident = self._residents.get(digest)
        if resident is None:
            return None
        resident.leases += 1
        self._residents.move_to_end(digest)
        return resident.slot

    def release(self, digest: str) -> None:
        """Give one lease back."""
        resident = self._residents[digest]
        if resident.leases == 0:
            raise ValueError(f"slot of {digest} is released more often than leased")
        resident.leases -= 1
        self._residents.move_to_end(digest)

    def leases(self, digest: str) -> int:
        """Leases on a revision; 0 when it is not resident."""
        resident = self._residents.get(digest)
        return resident.leases if resident else 0

    def pages_of(self, digest: str) -> tuple[int, ...]:
        """Pages of a resident; empty when it is not resident."""
        resident = self._residents.get(digest)
        return resident.pages if resident else ()

    def is_pinned(self, digest: str) -> bool:
        """Whether a resident stays on purpose."""
        return digest in self._residents and self._residents[digest].pinned

    def pin(self, digest: str, pinned: bool) -> None:
        """Keep a resident, or stop keeping it."""
        self._residents[digest].pinned = pinned

    def room_beside_pins(self, digest: str) -> Amounts:
        """Slots and pages that the pool worst off could still get were this one pinned too."""
        pool = self._residents[digest].pool if digest in self._residents else REST
        pinned: dict[str, Amounts] = {pool: (1, len(self.pages_of(digest)))}
        for other, resident in self._residents.items():
            if resident.pinned and other != digest:
                num_slots, num_pages = pinned.get(resident.pool, (0, 0))
                pinned[resident.pool] = (num_slots + 1, num_pages + len(resident.pages))
        rooms = [self._shares.room(name, pinned) for name in self._shares.pools]
        return min(room[0] for room in rooms), min(room[1] for room in rooms)

    @property
    def num_pages(self) -> int:
        """Pages of the pool."""
        return self._pages.num_pages

    @property
    def num_used_pages(self) -> int:
        """Pages that are not free."""
        return self._pages.num_pages - self._pages.num_free

    @property
    def fragmentation(self) -> float:
        """Share of the free pages outside of their longest run."""
        return self._pages.fragmentation

    def pool_of(self, tenant: str) -> str:
        """The pool whose share a tenant's adapters take."""
        return self._shares.pool_of(tenant)

    def is_in_the_way(self, holder: str, tenant: str, num_pages: int) -> bool:
        """Whether the resident `holder` could leave to make room for so many pages of a tenant."""
        if holder not in self._residents:
            return False
        held_by, wanted_by = self._residents[holder].pool, self._shares.pool_of(tenant)
        # Asked for every pair of holder and waiting adapter: mostly there is one pool, and no need to count.
        return held_by == wanted_by or self._shares.borrows_from(
            held_by, wanted_by, (1, num_pages), self._used()
        )

    def reserve(
        self, digest: str, num_pages: int, keep: Collection[str] = (), tenant: str = ""
    ) -> Placement | None:
        """Take a slot and pages for a revision, emptying the longest unused slots for them.

        None, and nothing changed, when leases, pins, `keep` and the tenant's share leave no room.
        """
        pool = self._shares.pool_of(tenant)
        victims = self._victims(pool, (1, num_pages), keep)
        if victims is None or digest in self._reserved:
            return None
        emptied = tuple(self.evict(victim) for victim in victims)
        placement = Placement(self._free.pop(), self._take(num_pages), emptied)
        self._reserved[digest] = placement
        self._pools[digest] = pool
        return placement

    def commit(self, digest: str) -> Placement:
        """The reserved pages are written: the revision is resident."""
        placement = self._reserved.pop(digest)
        self._residents[digest] = _Resident(placement.slot, placement.pages, self._pools.pop(digest))
        return placement

    def abandon(self, digest: str) -> None:
        """The reserved pages could not be written: give slot and pages back."""
        placement = self._reserved.pop(digest)
        del self._pools[digest]
        self._free.append(placement.slot)
        self._pages.release(placement.pages)

    def evict(self, digest: str) -> int:
        """Empty the slot of an unleased resident and return it; the pool must be unbound from it."""
        resident = self._residents[digest]
        if resident.leases:
            raise ValueError(f"{digest} has {resident.leases} leases and cannot be evicted")
        del self._residents[digest]
        self._free.append(resident.slot)
        self._pages.release(resident.pages)
        return resident.slot

    def stage(
        self, digest: str, num_pages: int, keep: Collection[str] = (), replaces: str | None = None
    ) -> Placement | None:
        """Take fresh pages, without a slot, for the weights that will replace a resident's.

        They count to the share of the resident that they replace. The `slot` of
        the placement is meaningless until `rebind`. None when there is no room.
        """
        pool = self._residents[replaces].pool if replaces else REST
        victims = self._victims(pool, (0, num_pages), keep)
        if victims is None or digest in self._staged:
            return None
        emptied = tuple(self.evict(victim) for victim in victims)
        self._staged[digest] = self._take(num_pages)
        self._pools[digest] = pool
        return Placement(-1, self._staged[digest], emptied)

    def unstage(self, digest: str) -> None:
        """Give staged pages back."""
        self._pages.release(self._staged.pop(digest))
        del self._pools[digest]

    def rebind(self, old: str, new: str) -> Placement:
        """`new`, from its staged pages, takes over slot, share, leases and pin of the resident `old`."""
        resident = self._residents.pop(old)
        self._pages.release(resident.pages)
        resident.pages = self._staged.pop(new)
        del self._pools[new]
        self._residents[new] = resident
        return Placement(resident.slot, resident.pages)

    def check(self) -> None:
        """Raise AssertionError unless every slot and every page has exactly one owner."""
        placements = list(self._reserved.values())
        residents = list(self._residents.values())
        used = [*self._free, *(place.slot for place in placements), *(res.slot for res in residents)]
        assert sorted(used) == list(range(self.num_slots)), f"slots are lost or shared: {sorted(used)}"
        self._shares.check(self._used())
        self._pages.check(
            [
                *(place.pages for place in placements),
                *(resident.pages for resident in residents),
                *self._staged.values(),
            ]
        )

    def _victims(self, pool: str, amounts: Amounts, keep: Collection[str]) -> list[str] | None:
        """The longest-unused residents whose leaving makes room; None when none make enough."""

        def evictable() -> Iterator[Occupant]:
            for digest, resident in self._residents.items():
                if not resident.leases and not resident.pinned and digest not in keep:
                    yield Occupant(digest, resident.pool, (1, len(resident.pages)))

        return self._shares.victims(pool, amounts, self._used(), evictable)

    def _used(self) -> dict[str, Amounts]:
        """Slots and pages that are not free, by pool."""
        used: dict[str, Amounts] = {}
        for pool, num_slots, num_pages in (
            *((resident.pool, 1, len(resident.pages)) for resident in self._residents.values()),
            *((self._pools[digest], 1, len(place.pages)) for digest, place in self._reserved.items()),
            *((self._pools[digest], 0, len(pages)) for digest, pages in self._staged.items()),
        ):
            slots_before, pages_before = used.get(pool, (0, 0))
            used[pool] = (slots_before + num_slots, pages_before + num_pages)
        return used

    def _take(self, num_pages: int) -> tuple[int, ...]:
        pages = self._pages.allocate(num_pages)
        assert pages is not None, "room was made before"
        return pages
