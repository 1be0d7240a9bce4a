"""AdapterStore: adapters in Redis.

Owns reads and the one way to write: `commit`, a compare-and-swap over one adapter that also keeps
names unique, counts what the tenant holds and announces the change. Knows nothing of what a
change means. Invariant: adapters, names, counts and changes never disagree, because one script
writes them all.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from control_plane.errors import NameTaken, QuotaExceeded
from control_plane.quotas.types import Limits
from control_plane.registry import codec, edits
from control_plane.registry.changes import ChangeKind
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.store import keys
from control_plane.store.script import Script

LUA = Path(__file__).with_name("lua")
CHANGES_KEPT = 10_000  # about 20 MB; a watcher that is further behind starts over
CHUNK = 500

LimitsOf = Callable[[str], Awaitable[Limits]]


class CommitConflict(Exception):
    """The adapter changed since it was read: read again and decide. Never leaves this package."""


class AdapterStore:
    """Reads adapters and commits changes of them."""

    def __init__(self, redis: Redis, limits_of: LimitsOf | None = None) -> None:
        self._redis = redis
        self._limits_of = limits_of
        self._commit = Script(LUA / "commit.lua")
        self._lookup = Script(LUA / "lookup.lua", read_only=True)
        self._page = Script(LUA / "page.lua", read_only=True)

    async def find(self, key: AdapterKey) -> Adapter | None:
        """Return the adapter that goes by this name or alias."""
        stored = await self._lookup.run(
            self._redis, (keys.REGISTRY_ADAPTERS, keys.REGISTRY_NAMES), (str(key),)
        )
        return codec.decode(stored) if stored else None

    async def scan(
        self, low: str, high: str, *, index: str = keys.REGISTRY_INDEX, chunk: int = CHUNK
    ) -> AsyncIterator[Adapter]:
        """Yield an index's adapters in order of `tenant/name`, between bounds as ZRANGE BYLEX has them."""
        while True:
            stored = await self._page.run(self._redis, (keys.REGISTRY_ADAPTERS, index), (low, high, chunk))
            for text in stored:  # decoded one by one: 500 at once would hold the event loop for 10 ms
                adapter = codec.decode(text)
                yield adapter
            if len(stored) < chunk:
                return
            chunk = min(2 * chunk, CHUNK)  # a reader that wants more than it asked for filters
            low = f"({adapter.key}"

    async def smallest(self, indexes: Collection[str]) -> str:
        """Return the index with the fewest adapters."""
        sizes = {index: int(await self._redis.zcard(index)) for index in indexes}
        return min(sizes, key=lambda index: sizes[index])

    async def version(self) -> int:
        """Return the resource version of the last change; 0 before the first."""
        value: Any = await self._redis.get(keys.REGISTRY_VERSION)
        return int(value or 0)

    async def now_s(self) -> float:
        """Return Redis' time, the one clock that all replicas share."""
        seconds, microseconds = await self._redis.time()
        return seconds + microseconds / 1e6

    async def commit(self, before: Adapter | None, after: Adapter | None) -> Adapter:
        """Replace `before` by `after` (None: no adapter) and return it as stored.

        Raises CommitConflict when `before` is no longer what is stored, NameTaken when another
        adapter goes by one of the names, QuotaExceeded when the tenant may not hold as much.
        """
        subject = after or before
        assert subject is not None, "a change has an adapter before it or after it"
        kind = _kind(before, after)
        limits = await self._limits(subject.key.tenant)
        kept = _names(after)
        given_up = [name for name in _names(before) if name not in kept]
        within = indexes(after)
        left = [index for index in indexes(before) if index not in within]
        document = codec.encode(subject)
        reply = await self._commit.run(
            self._redis,
            (
                keys.REGISTRY_ADAPTERS,
                keys.REGISTRY_NAMES,
                keys.REGISTRY_INDEX,
                keys.REGISTRY_VERSION,
                keys.REGISTRY_CHANGES,
                keys.registry_held(subject.key.tenant),
                *within,
                *left,
            ),
            (
                str(subject.key),
                before.resource_version if before else "",
                document,
                kind.value,
                edits.size_bytes(after) - edits.size_bytes(before),
                _or_none(limits.registered_adapters),
                _or_none(limits.adapter_bytes),
                CHANGES_KEPT,
                len(kept),
                len(within),
                *kept,
                *given_up,
            ),
        )
        match reply:
            case ["OK", version]:
                return codec.decode(f"{version} {document}")
            case ["TAKEN", name]:
                raise NameTaken("adapter", name, "exists with other content")
            case ["OVER", limit, maximum]:
                raise QuotaExceeded(subject.key.tenant, limit, int(maximum), retry_after_s=None)
        raise CommitConflict(str(subject.key))

    async def _limits(self, tenant: str) -> Limits:
        return await self._limits_of(tenant) if self._limits_of else Limits()


def _kind(before: Adapter | None, after: Adapter | None) -> ChangeKind:
    if before is None:
        return ChangeKind.ADDED
    return ChangeKind.DELETED if after is None else ChangeKind.MODIFIED


def _names(adapter: Adapter | None) -> list[str]:
    if adapter is None:
        return []
    tenant = adapter.key.tenant
    return [str(adapter.key), *(f"{tenant}/{alias}" for alias in adapter.aliases)]


def indexes(adapter: Adapter | None) -> list[str]:
    """Return the indexes beside that of all: who it is shared with, its labels, and what is being deleted."""
    if adapter is None:
        return []
    shared = [keys.registry_shared(tenant) for tenant in adapter.shared_with]
    deleting = [keys.REGISTRY_DELETING] if adapter.deleting else []
    return shared + deleting + [keys.registry_label(label, value) for label, value in adapter.labels.items()]


def _or_none(limit: int | None) -> str | int:
    return "" if limit is None else limit
