"""Holdings: the revisions that one worker holds, as an immutable value that shares what did not change.

Every request asks every worker what it holds, and every report changes little of it: what is derived is
carried over. Invariant: what `after` returns equals `Holdings` of the same adapters made anew, at the cost
of the change.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from control_plane.registry.types import AdapterKey
from control_plane.workers.shared_map import SharedMap


class Tier(Enum):
    """Where a worker holds a revision, fastest first."""

    SLOT = "slot"
    CPU = "cpu"
    DISK = "disk"
    SOURCE = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAdapter:
    """A revision that a worker holds, in the fastest tier that has it."""

    key: AdapterKey
    revision: int
    digest: str
    rank: int
    tier: Tier
    size_bytes: int = 0
    leases: int = 0
    pinned: bool = False
    # Unix time of the last use. Changes with every request, and nothing is commanded because of it.
    used_s: float = field(default=0.0, compare=False)
    slot_bytes: int = 0
    cpu_bytes: int = 0
    disk_bytes: int = 0

    @property
    def may_leave(self) -> bool:
        """Whether the worker may evict it from memory."""
        return self.tier in (Tier.SLOT, Tier.CPU) and not self.leases and not self.pinned


class Holdings:
    """What a worker holds."""

    __slots__ = ("_first_out", "_looked", "by_digest", "by_key", "num_resident")

    def __init__(self, adapters: Iterable[HeldAdapter] = ()) -> None:
        by_digest = {one.digest: one for one in adapters}
        by_key: dict[AdapterKey, tuple[HeldAdapter, ...]] = {}
        for one in by_digest.values():
            by_key[one.key] = (*by_key.get(one.key, ()), one)
        self.by_digest = _NO_DIGESTS.after(by_digest, ())
        self.by_key = _NO_KEYS.after(by_key, ())
        self.num_resident = _num_resident(by_digest.values())
        self._first_out: HeldAdapter | None = None  # of what may leave, the one unused longest
        self._looked = False  # for it: it is found when somebody first asks

    def __len__(self) -> int:
        return len(self.by_digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holdings) and self.by_digest == other.by_digest

    __hash__ = None  # type: ignore[assignment] # a value with dicts in it

    @property
    def unused_since_s(self) -> float:
        """Unix time of the last use of what may leave and was unused longest; infinite when nothing may."""
        if not self._looked:
            self._looked = True
            self._first_out = min(_leavers(self.by_digest.values()), key=_used_s, default=None)
        return math.inf if self._first_out is None else self._first_out.used_s

    def after(self, changed: Collection[HeldAdapter], gone: Collection[str]) -> "Holdings":
        """Return them with some adapters as they are now, and without others."""
        if not changed and not gone:
            return self
        now = {one.digest: one for one in changed}
        before = [known for digest in (*now, *gone) if (known := self.by_digest.get(digest)) is not None]
        after = Holdings.__new__(Holdings)
        after.by_digest = self.by_digest.after(now, gone)
        after.by_key = self._keys_after(now, before)
        after.num_resident = self.num_resident + _num_resident(changed) - _num_resident(before)
        first_out = self._first_out
        # When it is what changed itself, or nobody asked, it is looked for among all.
        after._looked = self._looked and all(one is not first_out for one in before)
        rivals = [*_leavers(changed), *([first_out] if first_out else [])] if after._looked else []
        after._first_out = min(rivals, key=_used_s, default=None)
        return after

    def _keys_after(
        self, now: Mapping[str, HeldAdapter], before: Collection[HeldAdapter]
    ) -> SharedMap[AdapterKey, tuple[HeldAdapter, ...]]:
        by_key: dict[AdapterKey, list[HeldAdapter]] = {one.key: [] for one in (*before, *now.values())}
        left = {one.digest for one in before}
        for key, held in by_key.items():
            held.extend(one for one in self.by_key.get(key) or () if one.digest not in left)
        for one in now.values():
            by_key[one.key].append(one)
        emptied = [key for key, held in by_key.items() if not held]
        return self.by_key.after({key: tuple(held) for key, held in by_key.items() if held}, emptied)


_NO_DIGESTS: SharedMap[str, HeldAdapter] = SharedMap()
_NO_KEYS: SharedMap[AdapterKey, tuple[HeldAdapter, ...]] = SharedMap()


def _leavers(adapters: Iterable[HeldAdapter]) -> Iterable[HeldAdapter]:
    return (one for one in adapters if one.may_leave)


def _num_resident(adapters: Iterable[HeldAdapter]) -> int:
    return sum(one.tier is Tier.SLOT for one in adapters)


def _used_s(held: HeldAdapter) -> float:
    return held.used_s
