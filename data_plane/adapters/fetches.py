"""Fetches: bringing adapters from their source into the CPU cache.

Owns reads under way and what recently failed; knows nothing of slots or requests. There is at most
one read of a digest at a time: whoever asks meanwhile shares it. What is read but finds no room
yet waits here for the next step boundary.
"""

from collections.abc import Callable

from data_plane.adapters.cpu_cache import CpuCache
from data_plane.adapters.load_queue import LoadQueue
from data_plane.adapters.loader import AdapterLoader, Loaded
from data_plane.adapters.revision import AdapterSource, Tier
from data_plane.adapters.types import PackedAdapter
from data_plane.errors import AdapterUnreadable, Overloaded, WorkerError

BACKOFF_S = 1.0  # an unreadable source is not asked again before


class Fetch:
    """One read of one source; `done` once the adapter is in the CPU cache or the read has failed."""

    __slots__ = ("done", "error", "source", "started_s", "tier")

    def __init__(self, source: AdapterSource, started_s: float, *, done: bool = False) -> None:
        self.source = source
        self.started_s = started_s
        self.done = done
        self.tier = Tier.SOURCE  # where it was found
        self.error: WorkerError | None = None

    @property
    def digest(self) -> str:
        """What is read."""
        return self.source.revision.digest

    def fail(self, error: WorkerError) -> None:
        """The read has failed."""
        self.error = error
        self.done = True


class Fetches:
    """Reads of adapters into a CPU cache."""

    def __init__(
        self,
        loader: AdapterLoader,
        cache: CpuCache,
        queue: LoadQueue[Loaded],
        clock: Callable[[], float],
    ) -> None:
        self._loader = loader
        self._cache = cache
        self._queue = queue
        self._clock = clock
        self._running: dict[str, Fetch] = {}
        self._arrived: list[tuple[Fetch, PackedAdapter]] = []
        self._backoff: dict[str, tuple[float, WorkerError]] = {}
        self.num_reads = 0  # of a source, whether or not they succeeded

    def __contains__(self, digest: str) -> bool:
        return digest in self._running

    def fetch(self, source: AdapterSource, *, urgent: bool, again: bool = False) -> Fetch:
        """Have the adapter in the CPU cache; `again` reads even when it is there already."""
        digest = source.revision.digest
        running = self._running.get(digest)
        if running is not None:
            if urgent:
                self._queue.hurry(digest)
            return running
        if digest in self._cache and not again:
            return Fetch(source, self._clock(), done=True)
        fetch = self._running[digest] = Fetch(source, self._clock())
        self._queue.submit(digest, lambda: self._loader.load(source, again=again), urgent=urgent)
        return fetch

    def recent_failure(self, digest: str) -> WorkerError | None:
        """Why the adapter could not be read a moment ago; None when it is time to try again."""
        until_s, error = self._backoff.get(digest, (0.0, None))
        return error if self._clock() < until_s else None

    def advance(self) -> tuple[list[Fetch], list[str]]:
        """Put what has arrived into the cache: the fetches that ended, and the digests evicted for them."""
        ended: list[Fetch] = []
        evicted: list[str] = []
        for outcome in self._queue.take_done():
            fetch = self._running[outcome.key]
            if outcome.value is not None:
                fetch.tier = outcome.value.tier
                self._arrived.append((fetch, outcome.value.adapter))
            else:
                ended.append(self._fail(fetch, _as_worker_error(fetch.source, outcome.error)))
            self.num_reads += fetch.tier is Tier.SOURCE
        for fetch, adapter in self._take_arrived():
            victims = self._cache.put(fetch.digest, adapter, fetch.source.revision.tenant)
            if victims is not None:
                del self._running[fetch.digest]
                fetch.done = True
                ended.append(fetch)
                evicted += victims
            elif self._cache.can_ever_hold(adapter, fetch.source.revision.tenant):
                self._arrived.append((fetch, adapter))
            else:
                ended.append(self._fail(fetch, _no_room(fetch.source, adapter, self._cache)))
        return ended, evicted

    def _take_arrived(self) -> list[tuple[Fetch, PackedAdapter]]:
        arrived, self._arrived = self._arrived, []
        return arrived

    def _fail(self, fetch: Fetch, error: WorkerError) -> Fetch:
        now = self._clock()
        del self._running[fetch.digest]
        fetch.fail(error)
        if isinstance(error, AdapterUnreadable):
            self._backoff = {key: value for key, value in self._backoff.items() if value[0] > now}
            self._backoff[fetch.digest] = (now + BACKOFF_S, error)
        return fetch


def _as_worker_error(source: AdapterSource, error: Exception | None) -> WorkerError:
    if isinstance(error, WorkerError):
        return error
    unreadable = AdapterUnreadable(
        f"adapter {source.revision.name}: reading {source.uri} failed: {type(error).__name__}: {error}"
    )
    unreadable.__cause__ = error
    return unreadable


def _no_room(source: AdapterSource, adapter: PackedAdapter, cache: CpuCache) -> WorkerError:
    return Overloaded(
        f"adapter {source.revision.name} takes {adapter.num_bytes} bytes of host memory; the CPU cache has "
        f"{cache.max_bytes} bytes for {cache.max_adapters} adapters, and "
        "the share of its tenant has no more that is not pinned"
    )
