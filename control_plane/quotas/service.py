"""Quotas: what each tenant may use, enforced over all replicas.

Owns limits, reservations and totals; the scripts in `lua/` decide, on Redis' clock. Knows nothing
of requests beyond their id and tokens. Invariant: a limit is never over-admitted, however many
replicas reserve at once, and what a crashed replica had reserved comes back when it expires.
"""

from collections.abc import Callable
from pathlib import Path

from redis.asyncio import Redis

from control_plane.errors import InvalidArgument, QuotaExceeded
from control_plane.quotas.store import LimitsStore
from control_plane.quotas.types import OF_REGISTRY, Limits, Quota, Reservation, Usage
from control_plane.registry.names import check_name
from control_plane.store import keys
from control_plane.store.script import Script

LUA = Path(__file__).with_name("lua")
# When a request in flight will end is not known; its client may as well ask again soon.
CONCURRENCY_RETRY_S = 1.0
SETTLED_TTL_S = 600.0  # how long a repeated settle is recognised; a retry comes within seconds
MAX_TOKENS = 1_000_000_000


Settled = Callable[[str, int, int], object]  # tenant, prompt tokens, completion tokens; for metrics


def _ignore(tenant: str, prompt_tokens: int, completion_tokens: int) -> None:
    """Count nothing."""


class Quotas:
    """Limits, reservations and usage of all tenants.

    A tenant without limits of its own has the defaults. A reservation expires after
    `reservation_ttl_s` unless it is renewed or settled.
    """

    def __init__(
        self, redis: Redis, defaults: Limits, reservation_ttl_s: float, settled: Settled = _ignore
    ) -> None:
        self._redis = redis
        self._settled = settled
        self._defaults = defaults
        self._default_arguments = defaults.arguments()
        self._ttl_ms = round(reservation_ttl_s * 1000)
        self._limits = LimitsStore(redis)
        self._reserve, self._settle, self._renew = (
            Script(LUA / "scope.lua", LUA / file) for file in ("reserve.lua", "settle.lua", "renew.lua")
        )
        self._usage = Script(LUA / "scope.lua", LUA / "usage.lua", read_only=True)

    async def set(self, quota: Quota) -> Quota:
        """Replace a tenant's (or one adapter's) limits as a whole, from the next request on."""
        _check_scope(quota.tenant, quota.adapter)
        if quota.adapter:
            _check_of_adapter(quota.limits)
        await self._limits.put(quota)
        return quota

    async def get(self, tenant: str, adapter: str = "") -> Quota:
        """Return the limits that hold: the tenant's own or the defaults; the adapter's own or none."""
        _check_scope(tenant, adapter)
        limits = await self._limits.find(tenant, adapter)
        if limits is None:
            limits = Limits() if adapter else self._defaults
        return Quota(tenant=tenant, adapter=adapter, limits=limits)

    async def limits_of(self, tenant: str) -> Limits:
        """Return the limits that hold for a tenant; the registry's hook."""
        return (await self.get(tenant)).limits

    async def delete(self, tenant: str, adapter: str = "") -> None:
        """Remove limits: the defaults hold again. None set: does nothing."""
        _check_scope(tenant, adapter)
        await self._limits.remove(tenant, adapter)

    async def list(self, page_size: int = 0, page_token: str = "") -> tuple[tuple[Quota, ...], str]:
        """Return a page of the limits that were set, and the token of the next page."""
        return await self._limits.page(page_size, page_token)

    async def reserve(self, tenant: str, request_id: str, tokens: int, adapter: str = "") -> Reservation:
        """Admit a request that uses at most `tokens`; the same request id again is the same reservation.

        Raises QuotaExceeded; its `retry_after_s` is None when waiting cannot help.
        """
        _check_scope(tenant, adapter)
        if not 0 <= tokens <= MAX_TOKENS:
            raise InvalidArgument("tokens", tokens, f"must be between 0 and {MAX_TOKENS}")
        reply = await self._reserve.run(
            self._redis,
            _keys(tenant, request_id, adapter),
            (request_id, tokens, self._ttl_ms, *self._default_arguments),
        )
        match reply:
            case ["OK", reserved, limits_slots]:
                return Reservation(
                    tenant=tenant,
                    request_id=request_id,
                    tokens=int(reserved),
                    adapter=adapter,
                    limits_slots=bool(limits_slots),
                )
            case ["OVER", limit, maximum, wait_us]:
                raise QuotaExceeded(tenant, limit, int(maximum), _retry_after_s(limit, int(maximum), wait_us))
        raise InvalidArgument("request_id", request_id, "was used by a request that has ended")

    async def settle(self, reservation: Reservation, prompt_tokens: int, completion_tokens: int) -> bool:
        """End a reservation with its true use and refund the rest; again: does nothing and returns False."""
        settled = await self._settle.run(
            self._redis,
            _keys(reservation.tenant, reservation.request_id, reservation.adapter),
            (
                reservation.request_id,
                prompt_tokens,
                completion_tokens,
                *self._default_arguments,
                max(self._ttl_ms, round(SETTLED_TTL_S * 1000)),
            ),
        )
        if settled:
            self._settled(reservation.tenant, prompt_tokens, completion_tokens)
        return bool(settled)

    async def release(self, reservation: Reservation) -> None:
        """End a reservation that used nothing: all tokens come back, the request still counts."""
        await self.settle(reservation, 0, 0)

    async def renew(self, reservation: Reservation) -> bool:
        """Extend a long request's reservation; False when it has expired or ended."""
        renewed = await self._renew.run(
            self._redis,
            _keys(reservation.tenant, reservation.request_id, reservation.adapter),
            (reservation.request_id, self._ttl_ms),
        )
        return bool(renewed)

    async def usage(self, tenant: str) -> Usage:
        """Return what a tenant uses now and has used."""
        _check_scope(tenant, "")
        inflight, *remaining, totals = await self._usage.run(
            self._redis, (keys.quota_totals(tenant), *keys.quota_scope(tenant)), self._default_arguments
        )
        requests, tokens, cold_loads = (None if left == "" else int(left) for left in remaining)
        held = await self._redis.hmget(keys.registry_held(tenant), ["adapters", "bytes"])
        total = {field: int(value) for field, value in zip(totals[::2], totals[1::2], strict=True)}
        return Usage(
            tenant=tenant,
            concurrent_requests=inflight,
            registered_adapters=int(held[0] or 0),
            adapter_bytes=int(held[1] or 0),
            remaining_requests=requests,
            remaining_tokens=tokens,
            remaining_cold_loads=cold_loads,
            **total,
        )


def _keys(tenant: str, request_id: str, adapter: str) -> tuple[str, ...]:
    of_adapter = keys.quota_scope(tenant, adapter) if adapter else ()
    return (
        keys.quota_totals(tenant),
        keys.quota_reservation(tenant, request_id),
        *keys.quota_scope(tenant),
        *of_adapter,
    )


def _retry_after_s(limit: str, maximum: int, wait_us: str) -> float | None:
    if wait_us:
        return int(wait_us) / 1e6
    return CONCURRENCY_RETRY_S if limit == "concurrent_requests" and maximum > 0 else None


def _check_of_adapter(limits: Limits) -> None:
    for name in sorted(OF_REGISTRY):
        if (limit := getattr(limits, name)) is not None:
            raise InvalidArgument(f"limits.{name}", limit, "is a limit of tenants, not of one adapter")


def _check_scope(tenant: str, adapter: str) -> None:
    check_name("tenant", tenant)
    if adapter:
        check_name("adapter", adapter)
