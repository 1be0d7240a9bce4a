"""Status: what the engine holds, as immutable values that any thread may read.

Taken at every change of a lease, on the step loop: what did not change since is not described again, and
while nothing changes the very same tuple is given, so that a reader sees that at once.
Measured with 2,000 held adapters: see `test_status_is_cheap_for_thousands_of_adapters`.
"""

from data_plane.adapters.holdings import Holdings
from data_plane.adapters.revision import Tier
from data_plane.engine.events import HeldAdapter


class HeldAdapters:
    """Every revision in any tier, described."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._held: dict[str, HeldAdapter] = {}
        self._taken: tuple[HeldAdapter, ...] = ()

    def take(self) -> tuple[HeldAdapter, ...]:
        """Residents first, each tier from the longest unused on."""
        changed = self._holdings.take_changed()
        for digest in changed:
            held = self._describe(digest)
            if held is None:
                self._held.pop(digest, None)
            else:
                self._held[digest] = held
        if changed:
            self._taken = tuple(self._held[digest] for digest in self._holdings if digest in self._held)
        return self._taken

    def _describe(self, digest: str) -> HeldAdapter | None:
        holdings = self._holdings
        source = holdings.names.source(digest)
        if source is None or digest not in holdings:
            return None
        return HeldAdapter(
            revision=source.revision,
            rank=holdings.rank(digest),
            tier=Tier.SLOT if digest in holdings.slots else Tier.CPU,
            slot_bytes=holdings.slot_bytes(digest),
            cpu_bytes=holdings.cpu_bytes(digest),
            disk_bytes=holdings.disk_bytes(digest),
            leases=holdings.slots.leases(digest),
            pinned=holdings.is_pinned(digest),
            used_s=holdings.used_s(digest),
        )
