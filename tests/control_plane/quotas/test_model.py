"""The scripts against the model of `model.py`, over random histories of one tenant."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from control_plane.errors import InvalidArgument, QuotaExceeded
from control_plane.quotas.service import Quotas
from control_plane.quotas.types import Limits, Quota, Reservation
from control_plane.store import keys
from tests.control_plane.quotas.model import Tenant

tenants = (f"t-{number}" for number in itertools.count())
ADAPTER = "bot"
NUMBERS = st.integers(0, 5)  # few ids, so that they come again
AMOUNTS = st.integers(0, 60)
USED = st.integers(0, 300)  # more than was reserved is a debt
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(0, 20),
    tokens_per_minute=st.none() | st.integers(0, 200),
    concurrent_requests=st.none() | st.integers(0, 5),
)
RESERVE = st.tuples(st.just("reserve"), NUMBERS, AMOUNTS)
STEPS = st.one_of(
    RESERVE,
    RESERVE,
    st.tuples(st.just("settle"), NUMBERS, USED),
    st.tuples(st.just("spend"), NUMBERS, AMOUNTS, USED),
    st.tuples(st.sampled_from(["renew", "expire"]), NUMBERS),
    st.tuples(st.just("limit"), st.sampled_from(["", ADAPTER]), LIMITS),
)


@dataclass
class History:
    """One tenant in Redis and in the model, step by step."""

    redis: Redis
    tenant: str = field(default_factory=lambda: next(tenants))
    model: Tenant = field(default_factory=Tenant)
    rejected: int = 0

    def __post_init__(self) -> None:
        self.quotas = Quotas(self.redis, Limits(), 60.0)

    async def take(self, what: str, *arguments: Any) -> None:
        await getattr(self, what)(*arguments)

    async def reserve(self, number: int, tokens: int) -> None:
        asked = self.reservation(number, tokens)
        known = self.model.living.get(asked.request_id)
        before_s = await self.now_s()
        try:
            got = await self.quotas.reserve(self.tenant, asked.request_id, tokens, asked.adapter)
        except InvalidArgument:
            assert asked.request_id in self.model.ended
        except QuotaExceeded:
            self.rejected += 1
            assert known is None
            assert not self.model.admits(tokens, asked.adapter, before_s)[0]
        else:
            assert asked.request_id not in self.model.ended
            if known is not None:
                assert got.tokens == known.tokens
                return
            now_s = await self.now_s()
            assert self.model.admits(tokens, asked.adapter, now_s)[1]
            self.model.reserve(asked.request_id, tokens, asked.adapter, before_s, now_s)

    async def settle(self, number: int, used: int) -> None:
        ended = self.reservation(number, 0)
        before_s = await self.now_s()
        settled = await self.quotas.settle(ended, 0, used)
        assert settled == self.model.settle(ended.request_id, used, before_s, await self.now_s())

    async def spend(self, number: int, tokens: int, used: int) -> None:
        await self.reserve(number, tokens)
        await self.settle(number, used)

    async def renew(self, number: int) -> None:
        renewed = self.reservation(number, 0)
        assert await self.quotas.renew(renewed) == (renewed.request_id in self.model.living)

    async def expire(self, number: int) -> None:
        """Let a reservation's time pass, without waiting for it."""
        gone = self.reservation(number, 0)
        if gone.request_id not in self.model.living:
            return
        await self.redis.delete(keys.quota_reservation(self.tenant, gone.request_id))
        await self.redis.zadd(keys.quota_scope(self.tenant)[2], {gone.request_id: 1})
        if gone.adapter:
            await self.redis.zadd(keys.quota_scope(self.tenant, ADAPTER)[2], {gone.request_id: 1})
        self.model.expire(gone.request_id)

    async def limit(self, adapter: str, limits: Limits) -> None:
        await self.quotas.set(Quota(tenant=self.tenant, adapter=adapter, limits=limits))
        self.model.scopes(adapter)[-1].limits = limits

    async def check(self) -> None:
        before_s = await self.now_s()
        usage, own = await self.quotas.usage(self.tenant), self.model.own
        assert usage.concurrent_requests == len(self.model.living)
        assert (usage.requests, usage.rejected_requests) == (self.model.requests, self.rejected)
        assert usage.completion_tokens == self.model.used
        for left, name in (
            (usage.remaining_requests, "requests_per_minute"),
            (usage.remaining_tokens, "tokens_per_minute"),
        ):
            most = getattr(own.limits, name)
            assert (left is None) == (most is None)
            if left is not None:
                low, _ = own.buckets[name].read(most, before_s)
                _, high = own.buckets[name].read(most, await self.now_s())
                assert max(0, low) - 1 < left <= max(0, high)

    def reservation(self, number: int, tokens: int) -> Reservation:
        """Every other id is of a request for the adapter."""
        adapter = ADAPTER if number % 2 else ""
        return Reservation(tenant=self.tenant, request_id=f"r-{number}", tokens=tokens, adapter=adapter)

    async def now_s(self) -> float:
        seconds, microseconds = await self.redis.time()
        return seconds + microseconds / 1e6


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(own=LIMITS, of_adapter=LIMITS, steps=st.lists(STEPS, min_size=15, max_size=40))
async def test_no_history_admits_more_or_less_than_the_model(
    redis: Redis, own: Limits, of_adapter: Limits, steps: list[tuple[Any, ...]]
) -> None:
    history = History(redis)
    await history.limit("", own)
    await history.limit(ADAPTER, of_adapter)
    for step in steps:
        await history.take(*step)
    for number in (-1, -2):  # a debt shows only when somebody asks
        await history.reserve(number, 0)
    await history.check()
