"""Slots and cold loads of a tenant: claimed by requests, reported by workers, never more than the limit."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from control_plane.errors import QuotaExceeded
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import Claim, Place, SlotClaims, SlotsFull, Wish
from control_plane.quotas.types import Limits, Quota

NO_LIMITS = Limits()


@pytest.fixture
def slots(redis: Redis) -> SlotClaims:
    return SlotClaims(redis, NO_LIMITS, 60.0)


@pytest.fixture
def quotas(redis: Redis) -> Quotas:
    return Quotas(redis, NO_LIMITS, 60.0)


async def limit(quotas: Quotas, adapter: str = "", **limits: int) -> None:
    await quotas.set(Quota(tenant="acme", adapter=adapter, limits=Limits(**limits)))


def wish(name: str, request_id: str = "r", worker: str = "w", **more: Any) -> Wish:
    fields = {"owner": "acme", "adapter": name, "cold": False, "request_id": request_id}
    return Wish(**(fields | {"place": Place(worker, f"sha256:{name}")} | more))


async def test_200_claims_at_once_of_40_adapters_get_exactly_the_slots_there_are(
    slots: SlotClaims, quotas: Quotas
) -> None:
    await limit(quotas, resident_slots=7)
    results = await asyncio.gather(
        *(slots.claim(wish(f"bot-{number % 40}", f"r-{number}")) for number in range(200)),
        return_exceptions=True,
    )
    claims = [one for one in results if isinstance(one, Claim)]
    assert len({claim.wish.place for claim in claims}) == 7
    # Requests for an adapter that has its slot share it.
    assert len(claims) == 35
    assert all(isinstance(one, Claim | SlotsFull) for one in results)


async def test_the_same_adapter_on_another_worker_is_another_slot(slots: SlotClaims, quotas: Quotas) -> None:
    await limit(quotas, resident_slots=1)
    await slots.claim(wish("bot", "r-1", worker="w-1"))
    with pytest.raises(SlotsFull) as full:
        await slots.claim(wish("bot", "r-2", worker="w-2"))
    assert full.value.running == {Place("w-1", "sha256:bot")}
    refusal = full.value.refusal
    assert (refusal.limit, refusal.maximum, full.value.of_adapter) == ("resident_slots", 1, False)


async def test_what_workers_report_counts_and_its_own_slot_is_no_new_one(
    slots: SlotClaims, quotas: Quotas
) -> None:
    await limit(quotas, resident_slots=1)
    reported = (Place("w", "sha256:a"),)
    await slots.claim(wish("a", resident=reported))
    with pytest.raises(SlotsFull):
        await slots.claim(wish("b", resident=reported))


async def test_an_adapters_own_limit_counts_only_its_own_slots(slots: SlotClaims, quotas: Quotas) -> None:
    await limit(quotas, "bot", resident_slots=1)
    taken = (Place("w-1", "sha256:bot"),)
    await slots.claim(wish("other", "r-1"))
    with pytest.raises(SlotsFull) as full:
        await slots.claim(
            wish("bot", "r-2", worker="w-2", resident=(*taken, Place("w", "x")), resident_of_adapter=taken)
        )
    assert full.value.of_adapter


async def test_a_slot_is_kept_for_a_moment_after_its_request_and_then_free(
    slots: SlotClaims, quotas: Quotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    await limit(quotas, resident_slots=1)
    claim = await slots.claim(wish("a", "r-1"))
    await slots.end(claim, cold=False)
    with pytest.raises(SlotsFull) as full:
        await slots.claim(wish("b", "r-2"))
    assert not full.value.running  # so that an idle one can make room
    monkeypatch.setattr("control_plane.quotas.slots.AFTERLIFE_S", 0.0)
    again = await slots.claim(wish("a", "r-3"))
    await slots.end(again, cold=False)
    await slots.claim(wish("b", "r-4"))


async def test_a_claim_expires_unless_it_is_renewed(redis: Redis, quotas: Quotas) -> None:
    await limit(quotas, resident_slots=1)
    brief = SlotClaims(redis, NO_LIMITS, 0.0)
    claim = await brief.claim(wish("a", "r-1"))
    await brief.claim(wish("b", "r-2"))  # the first one has expired
    assert not await brief.renew(claim)


async def test_loads_are_charged_once_a_place_and_refused_over_the_limit(
    slots: SlotClaims, quotas: Quotas
) -> None:
    await limit(quotas, cold_loads_per_minute=2)
    first = await slots.claim(wish("a", "r-1", cold=True))
    second = await slots.claim(wish("a", "r-2", cold=True))  # waits for the same load
    assert (first.charged, second.charged) == (True, False)
    await slots.claim(wish("b", "r-3", cold=True))
    with pytest.raises(QuotaExceeded) as over:
        await slots.claim(wish("c", "r-4", cold=True))
    assert (over.value.limit, over.value.maximum) == ("cold_loads_per_minute", 2)
    assert over.value.retry_after_s == pytest.approx(30, abs=1)
    await slots.claim(wish("c", "r-5", cold=False))


async def test_an_adapters_own_limit_of_loads_binds_it_on_every_worker_and_no_other_adapter(
    slots: SlotClaims, quotas: Quotas
) -> None:
    await limit(quotas, "bot", cold_loads_per_minute=5)
    wanted = [
        wish(name, f"{name}-{n}", worker=f"w-{n}", cold=True) for name in ("bot", "b") for n in range(20)
    ]
    results = await asyncio.gather(*map(slots.claim, wanted), return_exceptions=True)
    claimed = [one.wish.adapter for one in results if isinstance(one, Claim)]
    assert (claimed.count("bot"), claimed.count("b")) == (5, 20)
    refused = [one for one in results if isinstance(one, QuotaExceeded)]
    assert len(refused) == 15
    assert {one.limit for one in refused} == {"cold_loads_per_minute"}


async def test_a_load_that_was_not_needed_comes_back_and_one_that_was_is_owed(
    slots: SlotClaims, quotas: Quotas
) -> None:
    await limit(quotas, cold_loads_per_minute=10)
    unneeded = await slots.claim(wish("a", "r-1", cold=True))
    await slots.end(unneeded, cold=False)
    assert (await quotas.usage("acme")).remaining_cold_loads == 10
    unforeseen = await slots.claim(wish("b", "r-2", cold=False))
    await slots.end(unforeseen, cold=True)
    assert (await quotas.usage("acme")).remaining_cold_loads == 9


async def test_cold_loads_are_counted_in_usage(slots: SlotClaims, quotas: Quotas) -> None:
    await slots.count_cold_load("acme")
    await slots.count_cold_load("acme")
    assert (await quotas.usage("acme")).cold_loads == 2


async def test_a_reservation_says_whether_slots_are_limited(redis: Redis, quotas: Quotas) -> None:
    assert not (await quotas.reserve("acme", "r-1", 1)).limits_slots
    await limit(quotas, "bot", resident_slots=3)
    assert not (await quotas.reserve("acme", "r-2", 1)).limits_slots
    assert (await quotas.reserve("acme", "r-3", 1, "bot")).limits_slots
    assert (await quotas.reserve("acme", "r-3", 1, "bot")).limits_slots  # the same again
    by_default = Quotas(redis, Limits(cold_loads_per_minute=5), 60.0)
    assert (await by_default.reserve("globex", "r-4", 1)).limits_slots
