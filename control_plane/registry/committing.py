"""Committing: changes of stored adapters, made anew for as long as others come first.

Owns the loop around an atomic commit. Knows no rule: what changes is an edit's to say. Invariant:
whoever reads through this replica's lookups after a change has returned sees it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from control_plane.errors import NotFound, StoreUnavailable
from control_plane.registry import edits
from control_plane.registry.lookups import Lookups
from control_plane.registry.store import AdapterStore, CommitConflict
from control_plane.registry.types import Adapter, AdapterKey

MAX_ATTEMPTS = 32  # commits that lose a race; each lost one means that another won

_Result = TypeVar("_Result")

Edit = Callable[[Adapter, float], Adapter]
# From what is stored under a name, what is to be stored instead; the very same: nothing is to be done.
Decide = Callable[[Adapter | None], Adapter | None]


class Committing:
    """Changes of adapters, one commit each."""

    def __init__(self, store: AdapterStore, lookups: Lookups) -> None:
        self._store = store
        self._lookups = lookups

    async def get(self, key: AdapterKey) -> Adapter:
        """Return the adapter that goes by this name or alias; raise NotFound, also for one being deleted."""
        adapter = await self._store.find(key)
        if adapter is None or adapter.deleting:
            raise NotFound("adapter", str(key), "is being deleted" if adapter else "not found")
        return adapter

    async def find(self, key: AdapterKey) -> Adapter | None:
        """Return the adapter that goes by this name or alias, if there is one."""
        return await self._store.find(key)

    async def now_s(self) -> float:
        """Return the time that changes carry: Unix time, from Redis."""
        return await self._store.now_s()

    async def change(self, key: AdapterKey, edit: Edit) -> Adapter:
        """Commit an edit of the stored adapter at a time; raise NotFound, and what the edit raises."""
        now_s = await self._store.now_s()

        async def attempt() -> Adapter:
            stored = await self.get(key)
            changed = edit(stored, now_s)
            return (
                stored if changed == stored else await self._commit(stored, replace(changed, updated_s=now_s))
            )

        return await self._retry(key, attempt)

    async def decide(self, key: AdapterKey, decide: Decide) -> Adapter | None:
        """Commit what is decided on what is stored under this name, which may be nothing."""

        async def attempt() -> Adapter | None:
            stored = await self._store.find(key)
            wanted = decide(stored)
            return stored if wanted is stored else await self._commit(stored, wanted)

        return await self._retry(key, attempt)

    async def delete(self, key: AdapterKey, is_held: Callable[[AdapterKey], bool]) -> Adapter | None:
        """Delete the stored adapter with its names, or mark it where workers hold it; raise NotFound.

        Returns it as it is until they let go; None when it is gone.
        """
        now_s = await self._store.now_s()

        async def attempt() -> Adapter | None:
            stored = await self.get(key)
            left = edits.deleting(stored, now_s) if is_held(stored.key) else None
            committed = await self._commit(stored, left)
            return committed if left else None

        return await self._retry(key, attempt)

    async def _commit(self, before: Adapter | None, after: Adapter | None) -> Adapter:
        committed = await self._store.commit(before, after)
        self._lookups.drop(committed.key)  # before the caller hears of it, not when the change comes round
        return committed

    async def _retry(self, key: AdapterKey, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        for _ in range(MAX_ATTEMPTS):
            try:
                return await attempt()
            except CommitConflict:
                continue  # another change came first: decide on what is there now
        raise StoreUnavailable(
            f"adapter {str(key)!r} changed {MAX_ATTEMPTS} times while it was being changed"
        )
