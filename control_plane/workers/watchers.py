"""Watchers: what each reader of the fleet has yet to look at. Knows no workers, only their ids.

Bounded by the number of workers and adapters, however slow a reader is: it skips states, never changes.
"""

import asyncio
from collections.abc import Collection, Iterable

from control_plane.registry.types import AdapterKey

Keys = Collection[AdapterKey] | None  # the adapters that a change is about; None: it may be about anything


class Watcher:
    """One reader."""

    def __init__(self, worker_ids: Iterable[str]) -> None:
        self._pending: dict[str, set[AdapterKey] | None] = dict.fromkeys(sorted(worker_ids))
        self._told = asyncio.Event()
        if self._pending:
            self._told.set()

    def tell(self, worker_id: str, keys: Keys) -> None:
        """A worker changed."""
        if keys is None:
            self._pending[worker_id] = None
        else:
            known = self._pending.setdefault(worker_id, set())
            if known is not None:
                known.update(keys)
        self._told.set()

    async def take(self) -> dict[str, set[AdapterKey] | None]:
        """Wait for changes and return them."""
        await self._told.wait()
        self._told.clear()
        taken, self._pending = self._pending, {}
        return taken
