"""CPU cache: packed adapters in host memory, bounded in bytes and in number.

Knows nothing of slots, files or requests. Neither bound is ever exceeded. Held (being copied) and
pinned adapters are never evicted; among the rest the longest unused goes first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator

from data_plane.adapters.types import PackedAdapter


class CpuCache:
    """Packed adapters by digest."""

    def __init__(self, *, max_bytes: int, max_adapters: int) -> None:
        self.max_bytes = max_bytes
        self.max_adapters = max_adapters
        self.num_bytes = 0
        self._adapters: OrderedDict[str, PackedAdapter] = OrderedDict()  # longest unused first
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

    def can_ever_hold(self, adapter: PackedAdapter) -> bool:
        """Whether it fits beside what is pinned."""
        pinned_bytes = sum(self._adapters[digest].num_bytes for digest in self._pinned)
        return pinned_bytes + adapter.num_bytes <= self.max_bytes and len(self._pinned) < self.max_adapters

    def put(self, digest: str, adapter: PackedAdapter) -> list[str] | None:
        """Add or replace an adapter; the digests evicted for it, or None when there is no room now."""
        victims = self._victims(digest, adapter)
        if victims is None:
            return None
        for victim in victims:
            self.remove(victim)
        old = self._adapters.pop(digest, None)
        self.num_bytes += adapter.num_bytes - (old.num_bytes if old else 0)
        self._adapters[digest] = adapter
        return victims

    def remove(self, digest: str) -> int:
        """Drop an adapter and its pin; the bytes that became free, 0 when it is not cached."""
        if digest in self._held:
            raise ValueError(f"{digest} is being copied and cannot be removed")
        self._pinned.discard(digest)
        adapter = self._adapters.pop(digest, None)
        freed = adapter.num_bytes if adapter else 0
        self.num_bytes -= freed
        return freed

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
        assert self._pinned <= self._adapters.keys(), "a pin outlived its adapter"
        assert self._held.keys() <= self._adapters.keys(), "a hold outlived its adapter"

    def _victims(self, digest: str, adapter: PackedAdapter) -> list[str] | None:
        old = self._adapters.get(digest)
        num_bytes = self.num_bytes + adapter.num_bytes - (old.num_bytes if old else 0)
        count = len(self._adapters) + (old is None)
        victims: list[str] = []
        for candidate in [*self._adapters, None]:
            if num_bytes <= self.max_bytes and count <= self.max_adapters:
                return victims
            if candidate is None:
                break
            if candidate == digest or candidate in self._held or candidate in self._pinned:
                continue
            victims.append(candidate)
            num_bytes -= self._adapters[candidate].num_bytes
            count -= 1
        return None
