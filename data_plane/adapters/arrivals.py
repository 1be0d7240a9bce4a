"""Arrivals: when each revision was read, and when it came into its slot.

Knows nothing of tiers beyond their names. A revision that is read again keeps the arrival of its slot
until it comes into one anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from data_plane.adapters.revision import Tier


@dataclass(frozen=True, slots=True)
class Read:
    """One read of a source or disk entry."""

    began_s: float
    ended_s: float  # it was in the CPU cache
    tier: Tier  # where it was found

    @property
    def elapsed_s(self) -> float:
        """What it took."""
        return self.ended_s - self.began_s


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a resident made each step towards its slot."""

    read: Read
    copied_s: float  # the copy into its pages began
    bound_s: float  # it was in its slot

    def seen_from(self, arrival_s: float) -> tuple[Tier, float]:
        """The tier where a request that arrived then found the revision, and the load time it waited."""
        if self.bound_s <= arrival_s:
            return Tier.SLOT, 0.0
        if self.read.ended_s <= arrival_s:
            return Tier.CPU, self.bound_s - max(arrival_s, self.copied_s)
        return self.read.tier, self.bound_s - max(arrival_s, self.read.began_s)


class Arrivals:
    """The last read of every held revision, and the arrival of every resident."""

    def __init__(self) -> None:
        self._reads: dict[str, Read] = {}
        self._residents: dict[str, Arrival] = {}

    def __iter__(self) -> Iterator[str]:
        """Digests of residents."""
        return iter(self._residents)

    def of(self, digest: str) -> Arrival:
        """How a resident came into its slot."""
        return self._residents[digest]

    def read(self, digest: str, read: Read) -> None:
        """A revision came into the CPU cache."""
        self._reads[digest] = read

    def bound(self, digest: str, *, copied_s: float, bound_s: float) -> None:
        """A revision that was read came into a slot."""
        self._residents[digest] = Arrival(self._reads[digest], copied_s, bound_s)

    def left_slot(self, digest: str) -> None:
        """A resident is resident no longer."""
        del self._residents[digest]

    def forget(self, digest: str) -> None:
        """No tier has the revision any more."""
        self._reads.pop(digest, None)
        self._residents.pop(digest, None)
