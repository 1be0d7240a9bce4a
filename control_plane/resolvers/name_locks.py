"""NameLocks: one at a time per name.

Invariant: a lock exists only while somebody holds it or waits for it.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Held:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0


class NameLocks:
    """Locks by name, for the tasks of one event loop."""

    def __init__(self) -> None:
        self._held: dict[Hashable, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @asynccontextmanager
    async def hold(self, name: Hashable) -> AsyncIterator[None]:
        """Hold the name's lock for the time of the block."""
        held = self._held.setdefault(name, _Held())
        held.num_users += 1
        try:
            async with held.lock:
                yield
        finally:
            held.num_users -= 1
            if not held.num_users:
                del self._held[name]
