"""Watching: the present state of a tenant's adapters, then what happens to them, for any number of watchers.

Owns what watchers share: the last changes that this replica's one reader has heard of. A watcher has no
connection and no queue of its own; it knows its position and takes what comes after it, from memory,
or from Redis when it is further behind or nobody listens. Invariant: a watcher sees every change
after its position once, in order, or is told that one of them is kept no longer.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from redis.asyncio import Redis

from control_plane.registry import changes, listing
from control_plane.registry.changes import AdapterChange, ChangeKind
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import Adapter

KEPT = 1024  # changes in memory: about 5 MB
UNHEARD_S = 0.25  # between two reads of a watcher while nobody listens


@dataclass(frozen=True, slots=True)
class Watched:
    """A change, and from where a watch goes on after it; None while the present state is incomplete."""

    change: AdapterChange
    resume_version: int | None


class Recent:
    """The last changes, as one reader hears of them."""

    def __init__(self, kept: int = KEPT) -> None:
        self._changes: deque[AdapterChange] = deque(maxlen=kept)
        self._position: int | None = None  # of the last change heard of; None: nobody listens
        self._word = asyncio.Event()

    async def hear(
        self, stream: AsyncGenerator[AdapterChange, None], after: int
    ) -> AsyncGenerator[AdapterChange, None]:
        """Pass a stream of changes after a version on, and keep them for watchers while it lasts."""
        self._changes.clear()
        self._position = after
        try:
            async with aclosing(stream):
                async for change in stream:
                    self._changes.append(change)
                    self._position = change.adapter.resource_version
                    self._spread()
                    yield change
        finally:
            self._position = None
            self._spread()  # watchers read for themselves, and meet what ended the stream

    def after(self, version: int) -> Sequence[AdapterChange] | None:
        """Return the changes after a version; None when they are not here."""
        if self._position is None:
            return None
        missing = self._position - version
        if missing > len(self._changes):
            return None
        return list(self._changes)[-missing:] if missing > 0 else ()

    @property
    def word(self) -> asyncio.Event:
        """What is set at the next change; to be taken before looking, so that none slips in between."""
        return self._word

    @property
    def heard(self) -> bool:
        """Whether somebody listens, so that there will be word of every change."""
        return self._position is not None

    def _spread(self) -> None:
        self._word.set()
        self._word = asyncio.Event()


class Watching:
    """Watches over one Redis."""

    def __init__(self, redis: Redis, store: AdapterStore, recent: Recent) -> None:
        self._redis = redis
        self._store = store
        self._recent = recent

    async def watch(self, tenant: str | None, after: int | None) -> AsyncGenerator[Watched, None]:
        """Yield changes of a tenant's adapters (None: of all) after a version, for ever.

        Without a version the present state comes first, by name. Raises StaleRevision and StoreUnavailable
        as `changes.changes`.
        """
        if after is None:
            after = await self._store.version()
            async for present in self._present(tenant, after):
                yield present
        async for change in self._changes(after):
            if tenant in (None, change.adapter.key.tenant):
                yield Watched(change, change.adapter.resource_version)

    async def _present(self, tenant: str | None, version: int) -> AsyncGenerator[Watched, None]:
        last: Adapter | None = None
        async for adapter in self._store.scan(*listing.bounds(tenant, "", "")):
            if last is not None:
                yield Watched(AdapterChange(ChangeKind.ADDED, last), None)
            last = adapter
        if last is not None:
            yield Watched(AdapterChange(ChangeKind.ADDED, last), version)

    async def _changes(self, position: int) -> AsyncGenerator[AdapterChange, None]:
        while True:
            word = self._recent.word
            found = self._recent.after(position)
            if found is None:
                found = await changes.kept(self._redis, position)
            for change in found:
                position = change.adapter.resource_version
                yield change
            if not found:
                await _wait(word, None if self._recent.heard else UNHEARD_S)


async def _wait(word: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await word.wait()
    except TimeoutError:
        return  # nobody listens: look again
