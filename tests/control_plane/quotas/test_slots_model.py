"""The scripts of slots against a small model in Python, over random histories.

The model has no clock: claims, and what is kept after their end, live longer than a history, and no load
comes back by refilling while it lasts.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from control_plane.errors import QuotaExceeded
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import Claim, Place, SlotClaims, SlotsFull, Wish
from control_plane.quotas.types import Limits, Quota

tenants = (f"s-{number}" for number in itertools.count())
LIMITED = "a"  # the adapter with a limit of slots of its own


@dataclass
class Model:
    """Slots and loads of one tenant, and the slots of one of its adapters."""

    slots: int
    slots_of_limited: int
    most_loads: int
    loads: int = 0
    running: list[Claim] = field(default_factory=list)
    kept: set[Place] = field(default_factory=set)  # of requests that ended a moment ago

    def __post_init__(self) -> None:
        self.loads = self.most_loads

    def taken(self, adapter: str = "") -> set[Place]:
        places = {claim.wish.place for claim in self.running} | self.kept
        return {place for place in places if not adapter or place.digest == f"sha256:{adapter}"}

    def refusal(self, wish: Wish) -> str:
        """Who refuses a wish; '' when it is granted."""
        if wish.vacated is not None:
            self.kept.discard(wish.vacated)
        if wish.place in self.taken():
            return ""
        if len(self.taken()) >= self.slots:
            return "tenant"
        if wish.cold and self.loads < 1:
            return "loads"
        if wish.adapter == LIMITED and len(self.taken(LIMITED)) >= self.slots_of_limited:
            return "adapter"
        return ""

    def claim(self, claim: Claim) -> None:
        self.loads -= claim.charged
        self.running.append(claim)

    def end(self, claim: Claim, *, cold: bool) -> None:
        self.running.remove(claim)
        self.kept.add(claim.wish.place)
        self.loads = max(-self.most_loads, min(self.most_loads, self.loads + claim.charged - cold))


STEP = st.tuples(
    st.sampled_from(["claim", "claim", "claim", "claim for a vacated", "end", "renew"]),
    st.sampled_from([LIMITED, "b", "c"]),
    st.integers(0, 1),  # worker
    st.booleans(),  # cold
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limits=st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 4)),
    steps=st.lists(STEP, max_size=30),
)
async def test_no_history_claims_more_or_less_than_the_model(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int, int], steps: list[Any]
) -> None:
    monkeypatch.setattr("control_plane.quotas.slots.AFTERLIFE_S", 60.0)
    tenant, model = next(tenants), Model(*limits)
    quotas, slots = Quotas(redis, Limits(), 60.0), SlotClaims(redis, Limits(), 60.0)
    of_tenant = Limits(resident_slots=model.slots, cold_loads_per_minute=model.most_loads)
    await quotas.set(Quota(tenant=tenant, limits=of_tenant))
    of_adapter = Limits(resident_slots=model.slots_of_limited)
    await quotas.set(Quota(tenant=tenant, adapter=LIMITED, limits=of_adapter))
    for number, (step, adapter, worker, cold) in enumerate(steps):
        place = Place(f"w-{worker}", f"sha256:{adapter}")
        running = [claim for claim in model.running if claim.wish.place == place]
        if step.startswith("claim"):
            idle = model.kept - {claim.wish.place for claim in model.running} - {place}
            vacated = next(iter(sorted(idle & model.taken(adapter))), None) if "vacated" in step else None
            wish = Wish(
                owner=tenant,
                adapter=adapter,
                place=place,
                request_id=f"r-{number}",
                cold=cold,
                vacated=vacated,
            )
            await _claim(slots, wish, model)
        elif running and step == "renew":
            assert await slots.renew(running[0])
        elif running:
            await slots.end(running[0], cold=cold)
            model.end(running[0], cold=cold)
    usage = await quotas.usage(tenant)
    assert usage.remaining_cold_loads == max(0, model.loads)


async def _claim(slots: SlotClaims, wish: Wish, model: Model) -> None:
    expected, taken = model.refusal(wish), model.taken()
    running = {claim.wish.place for claim in model.running}
    if expected == "loads":
        with pytest.raises(QuotaExceeded, match="cold_loads_per_minute"):
            await slots.claim(wish)
    elif expected:
        with pytest.raises(SlotsFull) as full:
            await slots.claim(wish)
        assert full.value.of_adapter == (expected == "adapter")
        assert full.value.running == (running & model.taken(LIMITED) if full.value.of_adapter else running)
    else:
        claim = await slots.claim(wish)
        assert claim.charged == (wish.cold and wish.place not in taken)
        model.claim(claim)
