"""The scripts against a small model in Python, over random histories.

Redis' clock cannot be set, so the model keeps what has refilled since the start apart: an admission
may use it, a refusal may not have needed less than what is there without it.
"""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from control_plane.errors import QuotaExceeded
from control_plane.quotas.service import Quotas
from control_plane.quotas.types import Limits, Quota, Reservation

tenants = (f"t-{number}" for number in itertools.count())


@dataclass
class Model:
    """Levels of one tenant, as if nothing ever refilled."""

    limits: Limits
    requests: int
    tokens: int
    inflight: dict[str, int] = field(default_factory=dict)
    used: int = 0

    def admits(self, tokens: int, refilled_s: float) -> bool:
        per_minute, tokens_per_minute = self.limits.requests_per_minute, self.limits.tokens_per_minute
        assert per_minute is not None
        assert tokens_per_minute is not None
        return (
            len(self.inflight) < (self.limits.concurrent_requests or 0)
            and self.requests + per_minute * refilled_s / 60 >= 1
            and min(self.tokens + tokens_per_minute * refilled_s / 60, tokens_per_minute) >= tokens
        )

    def reserve(self, request_id: str, tokens: int) -> None:
        self.requests = max(0, self.requests - 1)
        self.tokens = max(0, self.tokens - tokens)
        self.inflight[request_id] = tokens

    def settle(self, request_id: str, used: int) -> None:
        self.tokens = min(
            self.limits.tokens_per_minute or 0, self.tokens + self.inflight.pop(request_id) - used
        )
        self.used += used


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limits=st.builds(
        Limits,
        requests_per_minute=st.integers(1, 20),
        tokens_per_minute=st.integers(1, 100),
        concurrent_requests=st.integers(1, 5),
    ),
    steps=st.lists(
        st.tuples(st.sampled_from(["reserve", "settle", "release"]), st.integers(0, 60)), max_size=40
    ),
)
async def test_no_history_admits_more_or_less_than_the_model(
    redis: Redis, limits: Limits, steps: list[tuple[str, int]]
) -> None:
    quotas, tenant = Quotas(redis, Limits(), 60.0), next(tenants)
    await quotas.set(Quota(tenant=tenant, limits=limits))
    model = Model(limits, limits.requests_per_minute or 0, limits.tokens_per_minute or 0)
    reservations: list[Reservation] = []
    started_s = await _now_s(redis)
    for number, (step, amount) in enumerate(steps):
        if step == "reserve":
            try:
                reservation = await quotas.reserve(tenant, f"r-{number}", amount)
            except QuotaExceeded:
                assert not model.admits(amount, 0.0)
            else:
                assert model.admits(amount, await _now_s(redis) - started_s)
                model.reserve(f"r-{number}", amount)
                reservations.append(reservation)
        elif reservations:
            reservation = reservations.pop(amount % len(reservations))
            used = min(amount, reservation.tokens) if step == "settle" else 0
            model.settle(reservation.request_id, used)
            await quotas.settle(reservation, 0, used)
    usage = await quotas.usage(tenant)
    elapsed_s = await _now_s(redis) - started_s
    assert usage.concurrent_requests == len(model.inflight)
    assert usage.completion_tokens == model.used
    assert usage.remaining_requests is not None
    assert usage.remaining_tokens is not None
    assert 0 <= usage.remaining_requests - model.requests <= 20 * elapsed_s / 60 + 1
    assert 0 <= usage.remaining_tokens - model.tokens <= 100 * elapsed_s / 60 + 1


async def _now_s(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return seconds + microseconds / 1e6
