"""CPU cache: packed adapters in host memory, bounded in bytes and in number.

Knows nothing of slots, files or requests. Neither bound is ever exceeded, nor the shares of the
tenants' pools. Held (being copied) and pinned adapters are never evicted; among the rest the longest
unused of the same pool goes first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from data_plane.adapters.shares import Amounts, CachePool, Occupant, Shares
from data_plane.adapters.types import PackedAdapter


class CpuCache:
    """Packed adapters by digest."""

    def __init__(self, *, max_bytes: int, max_adapters: int, pools: Sequence[CachePool] = ()) -> None:
        self.max_bytes = max_bytes
        self.max_adapters = max_adapters
        self.num_bytes = 0
        self._adapters: OrderedDict[str, PackedAdapter] = OrderedDict()  # longest unused first
        self._shares = Shares((max_bytes, max_adapters), pools)
        self._pools: dict[str, str] = {}  # by digest: whose share it takes
        self._used: dict[str, Amounts] = {}  # by pool
        self._held: Counter[str] = Counter()
        self._pinned: set[str] = set()

    def __contains__(self, digest: str) -> bool:
        return digest in self._adapters

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def peek(self, digest: str) -> PackedAdapter | None:
        """An adapter, its place in the order of eviction unchanged."""
        return self._adapters.get(digest)

    def touch(self, digest: str) -> None:
        """The adapter was used; no effect when it is not cached."""
        if digest in self._adapters:
            self._adapters.move_to_end(digest)

    def can_ever_hold(self, adapter: PackedAdapter, tenant: str = "") -> bool:
        """Whether it fits into the tenant's pool beside what is pinned."""
        pinned = self._sum(self._pinned)
        num_bytes, count = self._shares.room(self._shares.pool_of(tenant), pinned)
        return adapter.num_bytes <= num_bytes and count >= 1

    def put(self, digest: str, adapter: PackedAdapter, tenant: str = "") -> list[str] | None:
        """Add or replace an adapter; the digests evicted for it, or None when there is no room now."""
        pool = self._shares.pool_of(tenant)
        old = self._adapters.get(digest)
        used = dict(self._used)
        if old is not None:
            used[self._pools[digest]] = _plus(used[self._pools[digest]], old, -1)
        victims = self._shares.victims(
            pool, (adapter.num_bytes, 1), used, lambda: self._evictable(without=digest)
        )
        if victims is None:
            return None
        for victim in victims:
            self.remove(victim)
        self._take_out(digest)
        self._adapters[digest] = adapter
        self._pools[digest] = pool
        self._used[pool] = _plus(self._used.get(pool, (0, 0)), adapter)
        self.num_bytes += adapter.num_bytes
        return victims

    def remove(self, digest: str) -> int:
        """Drop an adapter and its pin; the bytes that became free, 0 when it is not cached."""
        if digest in self._held:
            raise ValueError(f"{digest} is being copied and cannot be removed")
        self._pinned.discard(digest)
        return self._take_out(digest)

    def hold(self, digest: str) -> None:
        """Keep an adapter while it is copied."""
        self._held[digest] += 1

    def unhold(self, digest: str) -> None:
        """The copy has ended."""
        self._held[digest] -= 1
        if self._held[digest] <= 0:
            del self._held[digest]

    def is_held(self, digest: str) -> bool:
        """Whether an adapter is being copied."""
        return digest in self._held

    def pin(self, digest: str, pinned: bool) -> None:
        """Keep a cached adapter on purpose, or stop keeping it."""
        if pinned:
            self._pinned.add(digest)
        else:
            self._pinned.discard(digest)

    def is_pinned(self, digest: str) -> bool:
        """Whether an adapter stays on purpose."""
        return digest in self._pinned

    def check(self) -> None:
        """Raise AssertionError unless the sums and bounds hold."""
        total = sum(adapter.num_bytes for adapter in self._adapters.values())
        assert total == self.num_bytes, f"{self.num_bytes} bytes counted, {total} held"
        assert total <= self.max_bytes, f"{total} bytes exceed {self.max_bytes}"
        assert len(self._adapters) <= self.max_adapters, f"{len(self._adapters)} adapters"
        assert self._sum(self._adapters) == {pool: used for pool, used in self._used.items() if any(used)}
        self._shares.check(self._used)
        assert self._pinned <= self._adapters.keys(), "a pin outlived its adapter"
        assert self._held.keys() <= self._adapters.keys(), "a hold outlived its adapter"

    def _take_out(self, digest: str) -> int:
        adapter = self._adapters.pop(digest, None)
        if adapter is None:
            return 0
        pool = self._pools.pop(digest)
        self._used[pool] = _plus(self._used[pool], adapter, -1)
        self.num_bytes -= adapter.num_bytes
        return adapter.num_bytes

    def _evictable(self, *, without: str) -> Iterator[Occupant]:
        for digest, adapter in self._adapters.items():
            if digest != without and digest not in self._held and digest not in self._pinned:
                yield Occupant(digest, self._pools[digest], (adapter.num_bytes, 1))

    def _sum(self, digests: Iterable[str]) -> dict[str, Amounts]:
        used: dict[str, Amounts] = {}
        for digest in digests:
            pool = self._pools[digest]
            used[pool] = _plus(used.get(pool, (0, 0)), self._adapters[digest])
        return used


def _plus(used: Amounts, adapter: PackedAdapter, sign: int = 1) -> Amounts:
    num_bytes, count = used
    return num_bytes + sign * adapter.num_bytes, count + sign
