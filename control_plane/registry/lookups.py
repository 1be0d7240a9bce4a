"""Lookups: adapters by name for requests, and what was last known of them while Redis is away.

Knows nothing of who may use what. Invariant: what is remembered is used only when Redis gives no
answer, and never for longer than `outage_s` after it was read.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from control_plane.errors import StoreUnavailable
from control_plane.registry.types import Adapter, AdapterKey

MAX_REMEMBERED = 20_000  # about 2 KB each; the one not asked for longest goes first

Find = Callable[[AdapterKey], Awaitable[Adapter | None]]


class Lookups:
    """Reads through; remembers only when an outage may be bridged."""

    def __init__(self, find: Find, *, outage_s: float, clock: Callable[[], float]) -> None:
        self._find = find
        self._outage_s = outage_s
        self._clock = clock
        self._remembered: OrderedDict[AdapterKey, tuple[Adapter | None, float]] = OrderedDict()

    async def find(self, key: AdapterKey) -> Adapter | None:
        """Return the adapter that goes by this name or alias; raise StoreUnavailable."""
        try:
            adapter = await self._find(key)
        except StoreUnavailable:
            known, read_at_s = self._remembered.get(key, (None, float("-inf")))
            if self._clock() - read_at_s > self._outage_s:
                raise
            return known
        if self._outage_s:
            self._remember(key, adapter)
        return adapter

    def _remember(self, key: AdapterKey, adapter: Adapter | None) -> None:
        self._remembered[key] = (adapter, self._clock())
        self._remembered.move_to_end(key)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
