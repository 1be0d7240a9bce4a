"""Quotas: limits, reservations and totals, on a real Valkey."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from control_plane.errors import InvalidArgument, QuotaExceeded
from control_plane.quotas.service import Quotas
from control_plane.quotas.types import Limits, Quota, Reservation, Usage
from control_plane.store import keys

TTL_S = 60.0
DEFAULTS = Limits(requests_per_minute=1000)


@pytest.fixture
def quotas(redis: Redis) -> Quotas:
    return Quotas(redis, DEFAULTS, TTL_S)


async def limit(quotas: Quotas, adapter: str = "", **limits: int) -> None:
    await quotas.set(Quota(tenant="acme", adapter=adapter, limits=Limits(**limits)))


async def admitted(
    quotas: Quotas, count: int, tokens: int = 1, adapter: str = "", prefix: str = "r"
) -> list[Reservation]:
    """Reserve many at once and return those that were admitted."""
    results = await asyncio.gather(
        *(quotas.reserve("acme", f"{prefix}-{number}", tokens, adapter) for number in range(count)),
        return_exceptions=True,
    )
    for result in results:
        assert isinstance(result, (Reservation, QuotaExceeded))
    return [result for result in results if isinstance(result, Reservation)]


async def expire(redis: Redis, reservation: Reservation) -> None:
    """Let a reservation's time pass, without waiting for it."""
    await redis.delete(keys.quota_reservation(reservation.tenant, reservation.request_id))
    await redis.zadd(keys.quota_scope(reservation.tenant)[2], {reservation.request_id: 1})


async def test_limits_are_replaced_as_a_whole_and_deleted_to_the_defaults(quotas: Quotas) -> None:
    assert (await quotas.get("acme")).limits == DEFAULTS
    await limit(quotas, tokens_per_minute=7, adapter_bytes=10**12)
    assert await quotas.get("acme") == Quota(
        tenant="acme", limits=Limits(tokens_per_minute=7, adapter_bytes=10**12)
    )
    await limit(quotas, concurrent_requests=0)
    assert (await quotas.get("acme")).limits == Limits(concurrent_requests=0)
    await limit(quotas)
    assert (await quotas.limits_of("acme")) == Limits()
    await quotas.delete("acme")
    await quotas.delete("acme")
    assert (await quotas.get("acme")).limits == DEFAULTS


@pytest.mark.parametrize(
    ("field", "quota"),
    [
        ("tenant", Quota(tenant="A B", limits=Limits())),
        ("adapter", Quota(tenant="acme", adapter="A/B", limits=Limits())),
        ("limits.tokens_per_minute", Quota(tenant="acme", limits=Limits(tokens_per_minute=-1))),
        *(
            (f"limits.{name}", Quota(tenant="acme", adapter="bot", limits=Limits(**{name: 1})))
            for name in ("registered_adapters", "adapter_bytes")
        ),
    ],
)
async def test_a_bad_quota_is_refused_by_field(quotas: Quotas, field: str, quota: Quota) -> None:
    with pytest.raises(InvalidArgument) as error:
        await quotas.set(quota)
    assert error.value.field == field


async def test_pages_hold_every_quota_once(quotas: Quotas) -> None:
    expected = [
        Quota(tenant=tenant, adapter=adapter, limits=Limits(requests_per_minute=1))
        for tenant in ("a", "b", "c")
        for adapter in ("", "bot")
    ]
    for quota in reversed(expected):
        await quotas.set(quota)
    first, token = await quotas.list(page_size=4)
    rest, end = await quotas.list(page_size=4, page_token=token)
    assert [*first, *rest] == expected
    assert (len(first), end) == (4, "")


@pytest.mark.parametrize("name", ["requests_per_minute", "concurrent_requests"])
async def test_a_limit_of_50_admits_exactly_50_at_once(quotas: Quotas, name: str) -> None:
    await limit(quotas, **{name: 50})
    assert len(await admitted(quotas, 60)) == 50


async def test_tokens_are_reserved_in_the_worst_case_and_the_rest_comes_back(quotas: Quotas) -> None:
    await limit(quotas, tokens_per_minute=1000)
    first, second = await admitted(quotas, 2, tokens=500)
    with pytest.raises(QuotaExceeded) as refused:
        await quotas.reserve("acme", "r-3", 500)
    assert (refused.value.limit, refused.value.maximum) == ("tokens_per_minute", 1000)
    assert refused.value.retry_after_s == pytest.approx(30.0, abs=1.0)  # 500 of 1000 a minute
    await quotas.settle(first, prompt_tokens=10, completion_tokens=40)
    assert (await quotas.usage("acme")).remaining_tokens == pytest.approx(450, abs=10)
    await quotas.release(second)
    assert (await quotas.usage("acme")).remaining_tokens == pytest.approx(950, abs=10)


async def test_more_use_than_reserved_is_charged_as_debt_of_at_most_a_minute(quotas: Quotas) -> None:
    await limit(quotas, tokens_per_minute=100)
    reservation = await quotas.reserve("acme", "r-1", 100)
    await quotas.settle(reservation, 0, 10_000)
    with pytest.raises(QuotaExceeded) as refused:
        await quotas.reserve("acme", "r-2", 1)
    assert refused.value.retry_after_s == pytest.approx(60.6, abs=0.6)


async def test_a_released_request_still_counts_as_one(quotas: Quotas) -> None:
    await limit(quotas, requests_per_minute=2)
    for reservation in await admitted(quotas, 2):
        await quotas.release(reservation)
    with pytest.raises(QuotaExceeded, match="requests_per_minute"):
        await quotas.reserve("acme", "again", 1)


async def test_the_wait_for_a_request_is_what_is_missing_of_it(quotas: Quotas) -> None:
    await limit(quotas, requests_per_minute=6)
    await admitted(quotas, 6)
    with pytest.raises(QuotaExceeded) as refused:
        await quotas.reserve("acme", "late", 1)
    assert refused.value.retry_after_s == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize(
    ("limits", "retry_after_s"),
    [
        ({"tokens_per_minute": 9}, None),  # the request is larger than the limit
        ({"tokens_per_minute": 0}, None),
        ({"requests_per_minute": 0}, None),
        ({"concurrent_requests": 0}, None),
        ({"concurrent_requests": 1}, 1.0),
    ],
)
async def test_a_retry_is_named_only_where_waiting_helps(
    quotas: Quotas, limits: dict[str, int], retry_after_s: float | None
) -> None:
    await limit(quotas, concurrent_requests=1)
    await quotas.reserve("acme", "first", 1)
    await limit(quotas, **limits)
    with pytest.raises(QuotaExceeded) as refused:
        await quotas.reserve("acme", "second", 10)
    assert (refused.value.limit, refused.value.retry_after_s) == (next(iter(limits)), retry_after_s)


async def test_a_zero_token_limit_refuses_even_a_request_of_no_tokens(quotas: Quotas) -> None:
    await limit(quotas, tokens_per_minute=0)
    with pytest.raises(QuotaExceeded):
        await quotas.reserve("acme", "r-1", 0)


async def test_a_refused_request_is_charged_nothing(quotas: Quotas) -> None:
    await limit(quotas, requests_per_minute=10, tokens_per_minute=5)
    with pytest.raises(QuotaExceeded, match="tokens_per_minute"):
        await quotas.reserve("acme", "r-1", 6)
    usage = await quotas.usage("acme")
    assert (usage.remaining_requests, usage.remaining_tokens, usage.concurrent_requests) == (10, 5, 0)
    assert (usage.requests, usage.rejected_requests) == (0, 1)


async def test_the_same_request_id_is_charged_once(quotas: Quotas) -> None:
    await limit(quotas, requests_per_minute=1, concurrent_requests=1, tokens_per_minute=10)
    first = await quotas.reserve("acme", "r-1", 10)
    assert await quotas.reserve("acme", "r-1", 10) == first
    await quotas.settle(first, 1, 2)
    await quotas.settle(first, 1, 2)
    usage = await quotas.usage("acme")
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (1, 1, 2)
    assert usage.remaining_tokens == 7
    with pytest.raises(InvalidArgument, match="request_id"):
        await quotas.reserve("acme", "r-1", 10)


async def test_a_crashed_reservation_expires_and_frees_its_place_beside_a_living_one(redis: Redis) -> None:
    limits = Limits(concurrent_requests=2)
    long, short = Quotas(redis, limits, 60.0), Quotas(redis, limits, reservation_ttl_s=0.05)
    await long.reserve("acme", "living", 1)
    crashed = await short.reserve("acme", "crashed", 1)
    with pytest.raises(QuotaExceeded, match="concurrent_requests"):
        await long.reserve("acme", "next", 1)
    async with asyncio.timeout(5.0):
        while (await long.usage("acme")).concurrent_requests > 1:  # Redis' clock decides
            await asyncio.sleep(0.01)
    assert not await short.renew(crashed)
    await long.reserve("acme", "next", 1)
    with pytest.raises(QuotaExceeded, match="concurrent_requests"):
        await long.reserve("acme", "one-too-many", 1)


async def test_a_renewed_reservation_outlives_its_first_time(redis: Redis) -> None:
    short, long = (Quotas(redis, Limits(concurrent_requests=1), ttl_s) for ttl_s in (0.2, 60.0))
    reservation = await short.reserve("acme", "r-1", 1)
    assert await long.renew(reservation)
    inflight = keys.quota_scope("acme")[2]
    seconds, _ = await redis.time()
    score = await redis.zscore(inflight, "r-1")
    assert isinstance(score, float)
    assert score / 1e6 > seconds + 50
    assert await redis.pttl(inflight) > 50_000
    assert await redis.pttl(keys.quota_reservation("acme", "r-1")) > 50_000


async def test_an_expired_reservation_that_is_settled_late_counts_but_refunds_nothing(
    quotas: Quotas, redis: Redis
) -> None:
    await limit(quotas, tokens_per_minute=100, concurrent_requests=1)
    late = await quotas.reserve("acme", "late", 100)
    await expire(redis, late)
    await quotas.settle(late, 3, 4)
    usage = await quotas.usage("acme")
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 4)
    assert usage.remaining_tokens is not None
    assert usage.remaining_tokens <= 5


async def test_a_limit_set_while_a_request_runs_is_not_refunded_what_was_never_charged(
    quotas: Quotas,
) -> None:
    await limit(quotas)
    unlimited = await quotas.reserve("acme", "r-1", 1000)
    await limit(quotas, tokens_per_minute=100)
    await quotas.reserve("acme", "r-2", 100)
    await quotas.settle(unlimited, 1, 1)
    with pytest.raises(QuotaExceeded, match="tokens_per_minute"):
        await quotas.reserve("acme", "r-3", 50)


async def test_a_lowered_limit_holds_with_the_next_request(quotas: Quotas) -> None:
    await limit(quotas, requests_per_minute=1000)
    await quotas.reserve("acme", "before", 1)
    await limit(quotas, requests_per_minute=2)
    assert len(await admitted(quotas, 5)) == 2


async def test_the_defaults_hold_for_a_tenant_without_limits(redis: Redis) -> None:
    quotas = Quotas(redis, Limits(requests_per_minute=3), TTL_S)
    assert len(await admitted(quotas, 5)) == 3


async def test_an_adapters_own_limits_hold_beside_its_tenants(quotas: Quotas) -> None:
    await limit(quotas, concurrent_requests=5)
    await limit(quotas, "bot", concurrent_requests=2, tokens_per_minute=100)
    of_bot = await admitted(quotas, 4, tokens=10, adapter="bot")
    assert len(of_bot) == 2
    others = [await quotas.reserve("acme", f"other-{number}", 10) for number in range(3)]
    with pytest.raises(QuotaExceeded):
        await quotas.reserve("acme", "over-the-tenants", 10)
    for reservation in [*of_bot, *others]:
        await quotas.release(reservation)
    await quotas.reserve("acme", "all-of-bot's", 100, adapter="bot")


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute", "concurrent_requests"])
async def test_an_adapters_limit_of_6_admits_exactly_6_at_once_and_binds_no_other_adapter(
    quotas: Quotas, name: str
) -> None:
    await limit(quotas)
    await limit(quotas, "bot", **{name: 6})
    of_bot, others = await asyncio.gather(
        admitted(quotas, 50, adapter="bot"), admitted(quotas, 50, adapter="other", prefix="o")
    )
    assert (len(of_bot), len(others)) == (6, 50)
    with pytest.raises(QuotaExceeded) as refused:
        await quotas.reserve("acme", "late", 1, "bot")
    assert (refused.value.limit, refused.value.maximum) == (name, 6)


async def test_tenants_do_not_share_limits(quotas: Quotas) -> None:
    await limit(quotas, concurrent_requests=1)
    await quotas.reserve("acme", "r-1", 1)
    await quotas.reserve("globex", "r-1", 1)


async def test_usage_counts_what_was_used_and_what_is_held(quotas: Quotas, redis: Redis) -> None:
    await limit(quotas, concurrent_requests=2)
    first, _ = await admitted(quotas, 3, tokens=9)
    await quotas.settle(first, 4, 5)
    await redis.hset(keys.registry_held("acme"), mapping={"adapters": 3, "bytes": 4096})
    assert await quotas.usage("acme") == Usage(
        tenant="acme",
        concurrent_requests=1,
        requests=2,
        rejected_requests=1,
        prompt_tokens=4,
        completion_tokens=5,
        registered_adapters=3,
        adapter_bytes=4096,
    )


async def test_everything_but_limits_and_totals_expires(quotas: Quotas, redis: Redis) -> None:
    await limit(quotas, requests_per_minute=5, tokens_per_minute=50, concurrent_requests=5)
    await quotas.settle(await quotas.reserve("acme", "r-1", 9), 1, 1)
    await quotas.reserve("acme", "r-2", 9)
    lasting = {keys.quota_totals("acme"), keys.quota_scope("acme")[0], keys.QUOTA_INDEX}
    for key in await redis.keys():
        assert (await redis.ttl(key) == -1) == (key in lasting), key


@pytest.mark.parametrize("tokens", [-1, 10**10])
async def test_absurd_tokens_are_refused(quotas: Quotas, tokens: int) -> None:
    with pytest.raises(InvalidArgument, match="tokens"):
        await quotas.reserve("acme", "r-1", tokens)


async def test_a_reservation_says_which_adapter_it_was_for(quotas: Quotas) -> None:
    reservation = await quotas.reserve("acme", "r-1", 5, "bot")
    assert reservation == Reservation(tenant="acme", request_id="r-1", tokens=5, adapter="bot")
    assert replace(reservation, adapter="") == await quotas.reserve("acme", "r-1", 5)


async def test_usage_reads_as_much_beside_a_hundred_tenants_as_alone(redis: Redis, quotas: Quotas) -> None:
    async def commands() -> dict[str, int]:
        await redis.config_resetstat()
        await quotas.usage("acme")
        stats = await redis.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): int(one["calls"])
            for name, one in stats.items()
            if name != "cmdstat_config|resetstat"
        }

    await quotas.settle(await quotas.reserve("acme", "r-0", 5), 2, 3)
    await commands()  # the script is known from here on
    alone = await commands()
    for number in range(100):
        await quotas.reserve(f"t-{number}", f"r-{number}", 5)
        await quotas.reserve("acme", f"r-{number + 1}", 5, f"bot-{number}")
    assert await commands() == alone
    assert not alone.keys() & {"keys", "scan", "hscan", "zscan", "sscan"}
