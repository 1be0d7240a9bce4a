"""LimitsStore: limits in Redis, per tenant and per adapter of a tenant.

Owns the format of stored limits and their index; the scripts of `lua/` read the same hashes.
Invariant: the index names every stored set of limits (and perhaps one that was just deleted).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from control_plane.errors import InvalidArgument
from control_plane.quotas.types import Limits, Quota
from control_plane.store import keys
from control_plane.store.script import Script

LUA = Path(__file__).with_name("lua")
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_LIMIT = 10**12  # so that Lua's numbers stay whole
_EXISTS = "quota"  # a field of every stored hash: one without any limit exists too


class LimitsStore:
    """Reads and writes limits."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._set = Script(LUA / "set.lua")

    async def find(self, tenant: str, adapter: str) -> Limits | None:
        """Return the limits set for exactly this tenant or adapter."""
        stored: Any = await self._redis.hgetall(keys.quota_scope(tenant, adapter)[0])
        return _decode(stored) if stored else None

    async def put(self, quota: Quota) -> None:
        """Replace the limits as a whole; raise InvalidArgument when one is out of range."""
        limits = {name: limit for name, limit in asdict(quota.limits).items() if limit is not None}
        for name, limit in limits.items():
            if not 0 <= limit <= MAX_LIMIT:
                raise InvalidArgument(f"limits.{name}", limit, f"must be between 0 and {MAX_LIMIT}")
        # The index first: the two are on different nodes of a cluster, and limits that no listing
        # shows would be worse than an entry without limits.
        await self._redis.zadd(keys.QUOTA_INDEX, {_member(quota.tenant, quota.adapter): 0})
        fields = (argument for pair in limits.items() for argument in pair)
        await self._set.run(
            self._redis, keys.quota_scope(quota.tenant, quota.adapter)[:1], (_EXISTS, 1, *fields)
        )

    async def remove(self, tenant: str, adapter: str) -> None:
        """Remove the limits; none there: does nothing."""
        await self._redis.delete(keys.quota_scope(tenant, adapter)[0])
        await self._redis.zrem(keys.QUOTA_INDEX, _member(tenant, adapter))

    async def page(self, page_size: int, page_token: str) -> tuple[tuple[Quota, ...], str]:
        """Return a page of limits by tenant and the token of the next; '' after the last."""
        if page_size < 0:
            raise InvalidArgument("page_size", page_size, "must be at least 0")
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        low = f"({page_token}" if page_token else "-"
        members: Any = await self._redis.zrange(
            keys.QUOTA_INDEX, low, "+", bylex=True, offset=0, num=size + 1
        )
        quotas = [await self._quota(*member.split("/", 1)) for member in members[:size]]
        token = members[size - 1] if len(members) > size else ""
        return tuple(quota for quota in quotas if quota), token

    async def _quota(self, tenant: str, adapter: str) -> Quota | None:
        limits = await self.find(tenant, adapter)
        return Quota(tenant=tenant, adapter=adapter, limits=limits) if limits else None


def _member(tenant: str, adapter: str) -> str:
    return f"{tenant}/{adapter}"


def _decode(stored: dict[str, str]) -> Limits:
    return Limits(**{name: int(value) for name, value in stored.items() if name != _EXISTS})
