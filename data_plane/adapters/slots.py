"""Slots: which adapter revision occupies which place in the rank pool.

Owns slots, the pages behind them, leases and pins; knows nothing of files, tensors, gRPC or
scheduling. A slot is free, reserved (its pages are being written; nobody computes with it) or
resident. A leased or pinned slot is never evicted; among the rest the longest unused goes first.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from data_plane.adapters.pages import PageAllocator


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
    leases: int = 0
    pinned: bool = False


class Slots:
    """The places of `num_slots` revisions, keyed by digest."""

    def __init__(self, num_slots: int, pages: PageAllocator) -> None:
        self.num_slots = num_slots
        self._pages = pages
        self._free = list(range(num_slots - 1, -1, -1))
        self._reserved: dict[str, Placement] = {}
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # longest unused first
        self._staged: dict[str, tuple[int, ...]] = {}

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

    @property
    def num_pinned(self) -> int:
        """Slots that stay on purpose."""
        return sum(resident.pinned for resident in self._residents.values())

    @property
    def num_pinned_pages(self) -> int:
        """Pages behind the pinned slots."""
        return sum(len(resident.pages) for resident in self._residents.values() if resident.pinned)

    @property
    def num_pages(self) -> int:
        """Pages of the pool."""
        return self._pages.num_pages

    @property
    def num_used_pages(self) -> int:
        """Pages that are not free."""
        return self._pages.num_pages - self._pages.num_free

    def num_available(self, keep: Collection[str] = ()) -> int:
        """Slots that are free or could be emptied now."""
        return len(self._free) + len(self._evictable(keep))

    def reserve(self, digest: str, num_pages: int, keep: Collection[str] = ()) -> Placement | None:
        """Take a slot and pages for a revision, emptying the longest unused slots for them.

        None, and nothing changed, when leases, pins and `keep` leave no room.
        """
        victims = self._victims(num_pages, keep, need_slot=True)
        if victims is None or digest in self._reserved:
            return None
        emptied = tuple(self.evict(victim) for victim in victims)
        placement = Placement(self._free.pop(), self._take(num_pages), emptied)
        self._reserved[digest] = placement
        return placement

    def commit(self, digest: str) -> Placement:
        """The reserved pages are written: the revision is resident."""
        placement = self._reserved.pop(digest)
        self._residents[digest] = _Resident(placement.slot, placement.pages)
        return placement

    def abandon(self, digest: str) -> None:
        """The reserved pages could not be written: give slot and pages back."""
        placement = self._reserved.pop(digest)
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

    def stage(self, digest: str, num_pages: int, keep: Collection[str] = ()) -> Placement | None:
        """Take fresh pages, without a slot, for the weights that will replace a resident's.

        The `slot` of the placement is meaningless until `rebind`. None when there is no room.
        """
        victims = self._victims(num_pages, keep, need_slot=False)
        if victims is None or digest in self._staged:
            return None
        emptied = tuple(self.evict(victim) for victim in victims)
        self._staged[digest] = self._take(num_pages)
        return Placement(-1, self._staged[digest], emptied)

    def unstage(self, digest: str) -> None:
        """Give staged pages back."""
        self._pages.release(self._staged.pop(digest))

    def rebind(self, old: str, new: str) -> Placement:
        """`new`, from its staged pages, takes over the slot, leases and pin of the resident `old`."""
        resident = self._residents.pop(old)
        self._pages.release(resident.pages)
        resident.pages = self._staged.pop(new)
        self._residents[new] = resident
        return Placement(resident.slot, resident.pages)

    def check(self) -> None:
        """Raise AssertionError unless every slot and every page has exactly one owner."""
        placements = list(self._reserved.values())
        residents = list(self._residents.values())
        used = [*self._free, *(place.slot for place in placements), *(res.slot for res in residents)]
        assert sorted(used) == list(range(self.num_slots)), f"slots are lost or shared: {sorted(used)}"
        self._pages.check(
            [
                *(place.pages for place in placements),
                *(resident.pages for resident in residents),
                *self._staged.values(),
            ]
        )

    def _evictable(self, keep: Collection[str]) -> list[str]:
        return [
            digest
            for digest, resident in self._residents.items()
            if not resident.leases and not resident.pinned and digest not in keep
        ]

    def _victims(self, num_pages: int, keep: Collection[str], *, need_slot: bool) -> list[str] | None:
        """The fewest longest-unused residents whose leaving makes room; None when none make enough."""
        free_pages = self._pages.num_free
        free_slots = len(self._free)
        victims: list[str] = []
        for digest in [*self._evictable(keep), None]:
            if free_pages >= num_pages and (free_slots or not need_slot):
                return victims
            if digest is None:
                break
            victims.append(digest)
            free_pages += len(self._residents[digest].pages)
            free_slots += 1
        return None

    def _take(self, num_pages: int) -> tuple[int, ...]:
        pages = self._pages.allocate(num_pages)
        assert pages is not None, "room was made before"
        return pages
