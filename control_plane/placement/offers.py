"""Offers: the loads that one worker could be given, and the most wanted of them that its room allows.

Knows no worker and no ledger. A line in the order of wanting, cut where the room ends: what is
before the cut is granted. Invariant (after `settle`): the granted ones fit, and the first that is
not granted would not. A change moves the cut only past offers whose grant changes by it.
"""

from bisect import bisect_left
from typing import NamedTuple

from control_plane.placement.plan import Rank, Room
from control_plane.registry.types import AdapterKey


class Offer(NamedTuple):
    """One revision that the worker lacks; in the order of wanting."""

    rank: Rank
    place: int  # among the adapter's own offers
    number: int  # of the revision
    size_bytes: int

    @property
    def key(self) -> AdapterKey:
        """Its adapter."""
        return self.rank[-1]


class Offers:
    """The line of one worker."""

    def __init__(self) -> None:
        self._line: list[Offer] = []
        self._of: dict[AdapterKey, list[Offer]] = {}
        self._cut = 0  # so many of the line are granted
        self._granted_bytes = 0

    def replace(self, key: AdapterKey, offers: list[Offer]) -> None:
        """Put an adapter's offers in place of those before; `settle` must follow."""
        before = self._of.get(key, [])
        if before == offers:
            return
        for offer in before:
            self._take_out(offer)
        for offer in offers:
            self._put_in(offer)
        if offers:
            self._of[key] = offers
        else:
            del self._of[key]

    def settle(self, room: Room) -> set[AdapterKey]:
        """Move the cut to where the room ends; return the adapters on its way."""
        moved: set[AdapterKey] = set()
        while self._cut and (self._granted_bytes > room.num_bytes or self._cut > room.places):
            self._cut -= 1
            self._granted_bytes -= self._line[self._cut].size_bytes
            moved.add(self._line[self._cut].key)
        while self._cut < len(self._line) and self._next_fits(room):
            self._granted_bytes += self._line[self._cut].size_bytes
            moved.add(self._line[self._cut].key)
            self._cut += 1
        return moved

    def granted(self, key: AdapterKey) -> list[int]:
        """Return the revisions of an adapter that the worker may be given."""
        end = self._line[self._cut - 1] if self._cut else None
        return [offer.number for offer in self._of.get(key, ()) if end is not None and offer <= end]

    def _next_fits(self, room: Room) -> bool:
        size_bytes = self._granted_bytes + self._line[self._cut].size_bytes
        return size_bytes <= room.num_bytes and self._cut < room.places

    def _take_out(self, offer: Offer) -> None:
        at = bisect_left(self._line, offer)
        del self._line[at]
        if at < self._cut:
            self._cut -= 1
            self._granted_bytes -= offer.size_bytes

    def _put_in(self, offer: Offer) -> None:
        at = bisect_left(self._line, offer)
        self._line.insert(at, offer)
        if at < self._cut:
            self._cut += 1
            self._granted_bytes += offer.size_bytes
