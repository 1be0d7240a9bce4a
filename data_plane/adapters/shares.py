"""Shares: how the room of a tier is divided between groups of tenants.

Owns the rule, not the contents; knows nothing of slots, files or requests. A tier has one or more
kinds of room (slots and pages, bytes and adapters), counted side by side. For each kind, always:

    used(pool) ≤ maximum(pool)        and        Σ over pools of max(used, reserved) ≤ capacity

so what a pool has reserved is never taken by another, in use or not, and growing within it needs
nobody else to leave.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_plane.errors import InvalidRequest

Amounts = tuple[int, ...]  # one number for each kind of room
REST = ""  # the pool of every tenant that no pool names


@dataclass(frozen=True, slots=True)
class CachePool:
    """A group of tenants and its share of every adapter tier."""

    name: str
    tenants: tuple[str, ...]
    reserved_share: float = 0.0  # of the tier: always there for the group
    max_share: float = 1.0  # of the tier: never exceeded

    def __post_init__(self) -> None:
        for field, ok, rule in (
            ("name", bool(self.name), "must not be empty"),
            ("tenants", bool(self.tenants), "must name at least one tenant"),
            ("reserved_share", 0 <= self.reserved_share <= 1, "must be in [0, 1]"),
            ("max_share", 0 < self.max_share <= 1, "must be in (0, 1]"),
            ("max_share", self.reserved_share <= self.max_share, "must be at least reserved_share"),
        ):
            if not ok:
                raise InvalidRequest(f"cache_pools[{self.name}].{field}", getattr(self, field), rule)


def check_pools(pools: Sequence[CachePool]) -> None:
    """Raise InvalidRequest unless the pools can stand side by side."""
    names = [pool.name for pool in pools]
    tenants = [tenant for pool in pools for tenant in pool.tenants]
    reserved = sum(pool.reserved_share for pool in pools)
    for field, value, ok, rule in (
        ("name", names, len(set(names)) == len(names), "must differ from pool to pool"),
        ("tenants", tenants, len(set(tenants)) == len(tenants), "must each be in one pool only"),
        # A sum of decimal fractions: 0.7 + 0.2 + 0.1 is a little above 1.
        ("reserved_share", reserved, reserved <= 1 + 1e-9, "must add up to at most 1"),
    ):
        if not ok:
            raise InvalidRequest(f"cache_pools.{field}", value, rule)


def check_room(pools: Sequence[CachePool], capacity: Amounts, largest: Amounts) -> None:
    """Raise InvalidRequest unless every pool has room for the largest adapter, whatever others hold."""
    shares = Shares(capacity, pools)
    for name in shares.pools:
        room = shares.room(name, {})
        if not _within(largest, room):
            rule = f"leaves pool {name!r} {room} slots and pages, the largest adapter takes {largest}"
            raise InvalidRequest("cache_pools", [pool.name for pool in pools], rule)


@dataclass(frozen=True, slots=True)
class Occupant:
    """Something that could leave, and the room it would give back."""

    key: str
    pool: str
    amounts: Amounts


class Shares:
    """The division of one tier."""

    def __init__(self, capacity: Amounts, pools: Sequence[CachePool] = ()) -> None:
        self._capacity = capacity
        self._pool_of = {tenant: pool.name for pool in pools for tenant in pool.tenants}
        self._reserved = {pool.name: _part(capacity, pool.reserved_share) for pool in pools}
        # Never less than one of anything: a pool without a slot could not serve its tenants at all.
        self._maximum = {
            pool.name: tuple(max(1, amount) for amount in _part(capacity, pool.max_share)) for pool in pools
        }
        self._reserved[REST] = (0,) * len(capacity)
        self._maximum[REST] = capacity

    @property
    def pools(self) -> Iterable[str]:
        """Names of the pools, REST among them."""
        return self._reserved

    def pool_of(self, tenant: str) -> str:
        """The pool that a tenant belongs to."""
        return self._pool_of.get(tenant, REST)

    def room(self, pool: str, fixed: Mapping[str, Amounts]) -> tuple[int, ...]:
        """What a pool could still take if everything but `fixed` left; `fixed` is by pool."""
        beside = self._sum(fixed, without=pool)
        own = fixed.get(pool, (0,) * len(self._capacity))
        return tuple(
            min(most, whole - taken) - kept
            for most, whole, taken, kept in zip(self._maximum[pool], self._capacity, beside, own, strict=True)
        )

    def victims(
        self,
        pool: str,
        amounts: Amounts,
        used: Mapping[str, Amounts],
        occupants: Callable[[], Iterator[Occupant]],
    ) -> list[str] | None:
        """Who leaves so that `pool` can take `amounts` more; None when that is not enough.

        `occupants` yields who may leave, the longest unused first. Those of the pool itself go first,
        then those of pools that hold more than they have reserved.
        """
        after = dict(used)
        after[pool] = _plus(after.get(pool, (0,) * len(self._capacity)), amounts)
        victims: list[str] = []
        for own in (True, False):
            for occupant in occupants():
                if self._holds(pool, after):
                    return victims
                if (occupant.pool == pool) is own and (own or self._borrows(occupant.pool, after)):
                    victims.append(occupant.key)
                    after[occupant.pool] = _minus(after[occupant.pool], occupant.amounts)
            if not _within(after[pool], self._maximum[pool]):
                return None  # others can leave as they like
        return victims if self._holds(pool, after) else None

    def borrows_from(self, holder: str, pool: str, amounts: Amounts, used: Mapping[str, Amounts]) -> bool:
        """Whether the pool `holder` has what `pool` may take to have `amounts` more."""
        after = _plus(used.get(pool, (0,) * len(self._capacity)), amounts)
        return _within(after, self._maximum[pool]) and self._borrows(holder, used)

    def check(self, used: Mapping[str, Amounts]) -> None:
        """Raise AssertionError unless the rule holds."""
        for name, amounts in used.items():
            assert _within(amounts, self._maximum[name]), f"pool {name!r} has {amounts}, over its maximum"
        total = self._sum(used)
        assert _within(total, self._capacity), f"{total} used or reserved of {self._capacity}"

    def _holds(self, pool: str, used: Mapping[str, Amounts]) -> bool:
        return _within(used[pool], self._maximum[pool]) and _within(self._sum(used), self._capacity)

    def _borrows(self, pool: str, used: Mapping[str, Amounts]) -> bool:
        return not _within(used[pool], self._reserved[pool])

    def _sum(self, used: Mapping[str, Amounts], without: str | None = None) -> Amounts:
        total: Amounts = (0,) * len(self._capacity)
        for name, reserved in self._reserved.items():
            if name != without:
                total = _plus(total, tuple(map(max, used.get(name, reserved), reserved)))
        return total


def _part(capacity: Amounts, share: float) -> Amounts:
    # A hair up, so that 0.29 of 100 is 29 whatever floating point makes of it.
    return tuple(int(amount * share + 1e-9) for amount in capacity)


def _plus(one: Amounts, other: Amounts) -> Amounts:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _minus(one: Amounts, other: Amounts) -> Amounts:
    return tuple(a - b for a, b in zip(one, other, strict=True))


def _within(amounts: Amounts, bound: Amounts) -> bool:
    return all(a <= b for a, b in zip(amounts, bound, strict=True))
