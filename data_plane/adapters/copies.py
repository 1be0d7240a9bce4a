"""Copies: writing packed adapters into pages of the rank pool, off the step loop.

Owns copies under way; knows nothing of which slot the pages will be bound to. A copied adapter is
held in the CPU cache until its copy is `settle`d, so the bound of the cache counts it all the while.
"""

from collections.abc import Callable
from dataclasses import dataclass

from data_plane.adapters.cpu_cache import CpuCache
from data_plane.adapters.load_queue import LoadQueue
from data_plane.adapters.types import PackedAdapter, RankPool
from data_plane.errors import AdapterUnreadable, WorkerError


@dataclass(slots=True)
class Copy:
    """Pages being written with an adapter; `done` once they are, or once writing has failed."""

    digest: str
    packed: PackedAdapter
    pages: tuple[int, ...]
    staged: bool  # for the slot of a running revision, not for a slot of its own
    began_s: float
    done: bool = False
    error: WorkerError | None = None


class Copies:
    """Copies from the CPU cache into the rank pool."""

    def __init__(
        self, pool: RankPool, cache: CpuCache, queue: LoadQueue[None], clock: Callable[[], float]
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._queue = queue
        self._clock = clock
        self._running: dict[str, Copy] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._running

    def begin(self, digest: str, pages: tuple[int, ...], *, staged: bool = False) -> Copy:
        """Write a cached adapter into pages that nobody computes with."""
        packed = self._cache.peek(digest)
        assert packed is not None, "only cached adapters are copied"
        self._cache.hold(digest)
        copy = Copy(digest, packed, pages, staged, self._clock())
        self._running[digest] = copy
        self._queue.submit(digest, lambda: self._write(copy), urgent=True)
        return copy

    def _write(self, copy: Copy) -> None:
        copy.packed = self._pool.write(copy.pages, copy.packed)

    def advance(self) -> list[Copy]:
        """The copies that ended. Each must be settled once its pages are bound or given back."""
        ended = []
        for outcome in self._queue.take_done():
            copy = self._running[outcome.key]
            copy.done = True
            if outcome.error is not None:
                copy.error = AdapterUnreadable(
                    f"adapter {copy.digest} could not be written into the rank pool: {outcome.error!r}"
                )
                copy.error.__cause__ = outcome.error
            ended.append(copy)
        return ended

    def settle(self, copy: Copy) -> None:
        """The pages are bound or given back: the copy is over."""
        del self._running[copy.digest]
        self._cache.unhold(copy.digest)
