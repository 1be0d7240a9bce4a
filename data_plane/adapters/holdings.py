"""Holdings: which revisions the tiers hold, under which names, how large, and when last used.

Owns what is known of each held revision beside its weights, and notes which of it changed, so that a
report describes only that. Moves nothing: the life cycle does, and says so here. Step loop only.
"""

from collections.abc import Callable, Iterator

from data_plane.adapters.arrivals import Arrivals
from data_plane.adapters.cpu_cache import CpuCache
from data_plane.adapters.loader import AdapterLoader
from data_plane.adapters.names import Names
from data_plane.adapters.slots import Slots
from data_plane.adapters.types import RankPool


class Holdings:
    """Every revision in a slot or in the CPU cache."""

    def __init__(
        self,
        *,
        slots: Slots,
        cache: CpuCache,
        loader: AdapterLoader,
        pool: RankPool,
        clock: Callable[[], float],
    ) -> None:
        self.slots = slots
        self.cache = cache
        self.names = Names()
        self.arrivals = Arrivals()
        self.version = 0  # grows with every change of a tier, a lease or a pin
        self._loader = loader
        self._pool = pool
        self._clock = clock
        self._changed: set[str] = set()
        self._ranks: dict[str, int] = {}
        self._used_s: dict[str, float] = {}

    def __iter__(self) -> Iterator[str]:
        """Digests, those of residents first."""
        yield from self.slots
        yield from (digest for digest in self.cache if digest not in self.slots)

    def __contains__(self, digest: str) -> bool:
        return digest in self.slots or digest in self.cache

    def rank(self, digest: str) -> int:
        """Rank of a held revision."""
        return self._ranks[digest]

    def used_s(self, digest: str) -> float:
        """When the revision was last used, or came."""
        return self._used_s[digest]

    def is_pinned(self, digest: str) -> bool:
        """Whether the revision stays in some tier on purpose."""
        return self.slots.is_pinned(digest) or self.cache.is_pinned(digest)

    def slot_bytes(self, digest: str) -> int:
        """Bytes that the revision takes in its slot: pages of the rank pool, and what lies beside."""
        pages = self.slots.pages_of(digest)
        return len(pages) * self._pool.page_bytes + self._pool.side_bytes_of(pages)

    def cpu_bytes(self, digest: str) -> int:
        """Bytes of host memory that the revision takes."""
        packed = self.cache.peek(digest)
        return packed.num_bytes if packed else 0

    def disk_bytes(self, digest: str) -> int:
        """Bytes of the disk cache that the revision's files take."""
        return self._loader.disk_bytes_of(digest)

    @property
    def slot_bytes_used(self) -> int:
        """Bytes of the rank pool that are taken, and of what lies beside."""
        return self.slots.num_used_pages * self._pool.page_bytes + self._pool.side_bytes

    def take_changed(self) -> set[str]:
        """The digests that changed since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def changed(self, digest: str) -> None:
        """A tier, lease, pin or name of the revision has changed."""
        self.version += 1
        self._changed.add(digest)

    def note_disk(self) -> None:
        """Take in what loader threads changed on disk since this was last called."""
        for digest in self._loader.take_disk_changes():
            if digest in self:
                self.changed(digest)

    def came(self, digest: str, rank: int) -> None:
        """The revision is in the CPU cache now."""
        self._ranks[digest] = rank
        self.touch(digest)

    def touch(self, digest: str) -> None:
        """The revision was used."""
        self._used_s[digest] = self._clock()
        self.changed(digest)

    def forget(self, digest: str) -> None:
        """No tier has the revision any more, and it is on its way into none."""
        self.names.forget(digest)
        self.arrivals.forget(digest)
        self._ranks.pop(digest, None)
        self._used_s.pop(digest, None)
