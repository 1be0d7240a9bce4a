"""Lookups: adapters by name for requests, remembered while every change of them is followed.

Knows nothing of who may use what. Invariants: while changes are followed, what is remembered is
what the store holds, but for changes of other replicas that are on their way (milliseconds; this
one's own are seen at once); while they are not, it is used only when Redis gives no answer, and
never for longer than `outage_s` after it was last known to be true. That a name is unknown is
always read anew.
"""

from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from control_plane.errors import StaleRevision, StoreUnavailable
from control_plane.registry.changes import AdapterChange
from control_plane.registry.types import Adapter, AdapterKey

MAX_REMEMBERED = 20_000  # about 2 KB each; the one not asked for longest goes first

Find = Callable[[AdapterKey], Awaitable[Adapter | None]]
Changes = Callable[[int], AsyncGenerator[AdapterChange, None]]


@dataclass(frozen=True, slots=True)
class _Known:
    """What a name stood for, and when (on the local clock) that was read."""

    adapter: Adapter | None
    read_at_s: float


class Lookups:
    """Reads through, and remembers what may be used again."""

    def __init__(self, find: Find, *, outage_s: float, clock: Callable[[], float]) -> None:
        self._find = find
        self._outage_s = outage_s
        self._clock = clock
        self._known: OrderedDict[AdapterKey, _Known] = OrderedDict()  # by name or alias
        self._names: dict[AdapterKey, set[AdapterKey]] = defaultdict(set)  # of an adapter, in `_known`
        self._position: int | None = None  # the last change that was taken; None: none yet
        self._followed = False
        self._followed_until_s = float("-inf")
        self._turn = 0  # grows when something is dropped: what was being read meanwhile may be older

    async def find(self, key: AdapterKey) -> Adapter | None:
        """Return the adapter that goes by this name or alias; raise StoreUnavailable."""
        known = self._known.get(key)
        if self._followed and known is not None and known.adapter is not None:
            self._known.move_to_end(key)
            return known.adapter
        turn, read_at_s = self._turn, self._clock()
        try:
            adapter = await self._find(key)
        except StoreUnavailable:
            known = self._known.get(key)
            if known is None or not self._bridges(known):
                raise
            return known.adapter
        if (self._followed or self._outage_s) and turn == self._turn:
            self._remember(key, _Known(adapter, read_at_s))
        return adapter

    async def follow(self, version: int, changes: Changes) -> None:
        """Drop what changes, from the registry's present version on, for ever.

        Raises what `changes` raises; called again it goes on where it was.
        """
        if self._position is None or self._position > version:
            self._restart(version)
        assert self._position is not None
        try:
            self._followed = self._position >= version
            async with aclosing(changes(self._position)) as stream:
                async for change in stream:
                    self.drop(change.adapter.key)
                    self._position = change.adapter.resource_version
                    self._followed = self._position >= version
        except StaleRevision:
            self._restart(None)
            raise
        finally:
            if self._followed:
                self._followed_until_s = self._clock()
            self._followed = False

    def drop(self, adapter: AdapterKey) -> None:
        """Forget an adapter by all its names: it has changed."""
        self._turn += 1
        for name in self._names.pop(adapter, ()):
            self._known.pop(name, None)

    def _restart(self, position: int | None) -> None:
        self._turn += 1
        self._known.clear()
        self._names.clear()
        self._position = position

    def _bridges(self, known: _Known) -> bool:
        """Whether an outage is short enough to use this."""
        return self._clock() - max(known.read_at_s, self._followed_until_s) <= self._outage_s

    def _remember(self, key: AdapterKey, known: _Known) -> None:
        self._forget(key)
        self._known[key] = known
        if known.adapter is not None:
            self._names[known.adapter.key].add(key)
        while len(self._known) > MAX_REMEMBERED:
            self._forget(next(iter(self._known)))

    def _forget(self, name: AdapterKey) -> None:
        known = self._known.pop(name, None)
        if known is not None and known.adapter is not None:
            names = self._names[known.adapter.key]
            names.discard(name)
            if not names:
                del self._names[known.adapter.key]
