"""Status: what the engine holds and does, as immutable values that any thread may read.

Owns the counts of what was computed; reads the rest where it is. Taken at every change of a lease, on
the step loop: what did not change since is not described again, and while nothing changes the very
same tuple is given, so that a reader sees that at once.
Measured with 2,000 held adapters: see `test_status_is_cheap_for_thousands_of_adapters`.
"""

from collections.abc import Callable

from data_plane.adapters.holdings import Holdings
from data_plane.adapters.lifecycle import AdapterManager
from data_plane.adapters.revision import Tier
from data_plane.engine.events import EngineStatus, HeldAdapter
from data_plane.kv_cache.tables import BlockTables
from data_plane.scheduler.scheduler import Scheduler


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


class StatusReporter:
    """Takes snapshots of an engine."""

    def __init__(
        self,
        adapters: AdapterManager,
        scheduler: Scheduler,
        tables: BlockTables,
        clock: Callable[[], float],
    ) -> None:
        self._adapters = adapters
        self._scheduler = scheduler
        self._tables = tables
        self._clock = clock
        self._held = HeldAdapters(adapters.holdings)
        self._computed_tokens = 0
        self.num_steps = 0

    def computed(self, num_tokens: int) -> None:
        """One more step was computed, of so many tokens."""
        self.num_steps += 1
        self._computed_tokens += num_tokens

    def take(self) -> EngineStatus:
        """What the engine holds and does now."""
        adapters, scheduler = self._adapters, self._scheduler
        return EngineStatus(
            adapters=self._held.take(),
            taken_s=self._clock(),
            running_requests=scheduler.num_running,
            waiting_requests=scheduler.num_waiting,
            free_blocks=self._tables.num_free,
            slot_bytes_used=adapters.slot_bytes_used,
            cpu_bytes_used=adapters.cache.num_bytes,
            disk_bytes_used=adapters.disk_bytes_used,
            slot_evictions=adapters.slot_evictions,
            cpu_evictions=adapters.cpu_evictions,
            disk_evictions=adapters.disk_evictions,
            pool_fragmentation=adapters.slots.fragmentation,
            computed_tokens=self._computed_tokens,
            cold_loads=adapters.num_reads,
            max_adapters_in_step=scheduler.max_adapters_in_step,
            steps=self.num_steps,
        )
