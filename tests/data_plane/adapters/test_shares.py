"""Shares of a tier: a reserve nobody else takes, a maximum never exceeded, eviction within the pool first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.adapters.cpu_cache import CpuCache
from data_plane.adapters.pages import PageAllocator
from data_plane.adapters.shares import CachePool, Shares, check_pools, check_room
from data_plane.adapters.slots import Slots
from data_plane.errors import InvalidRequest
from tests.data_plane.fakes import FakePacked

GOLD = CachePool("gold", ("acme", "umbrella"), reserved_share=0.5)
TRIAL = CachePool("trial", ("guest",), max_share=0.25)
POOLS = (GOLD, TRIAL)
TENANTS = ("acme", "umbrella", "guest", "other")


def put(cache: CpuCache, name: str, num_bytes: int, tenant: str) -> list[str] | None:
    return cache.put(name, FakePacked(name, num_bytes=num_bytes), tenant)


def cache_of(max_bytes: int = 100, max_adapters: int = 100) -> CpuCache:
    return CpuCache(max_bytes=max_bytes, max_adapters=max_adapters, pools=POOLS)


def test_nobody_takes_what_a_pool_has_reserved_even_while_it_is_empty():
    cache = cache_of()
    assert put(cache, "a", 50, "other") == []
    assert put(cache, "b", 10, "other") == ["a"], "half of the cache is gold's"
    assert put(cache, "gold", 50, "acme") == []


def test_a_pool_never_exceeds_its_maximum_while_the_rest_is_empty():
    cache = cache_of()
    assert put(cache, "a", 25, "guest") == []
    assert put(cache, "b", 5, "guest") == ["a"]
    assert put(cache, "c", 26, "guest") is None


def test_a_pool_evicts_its_own_before_what_another_borrowed():
    cache = cache_of()
    put(cache, "borrowed", 20, "other")
    put(cache, "own", 80, "acme")
    assert put(cache, "new", 60, "umbrella") == ["own"]
    assert "borrowed" in cache


def test_what_another_borrowed_goes_when_a_pool_needs_its_shared_part():
    cache = cache_of()
    put(cache, "borrowed", 30, "acme")
    put(cache, "much", 60, "acme")
    assert put(cache, "new", 20, "other") == ["borrowed"], "gold keeps more than its reserve"
    assert "much" in cache


def test_tenants_of_one_pool_share_it():
    cache = cache_of()
    put(cache, "a", 60, "acme")
    put(cache, "b", 40, "umbrella")
    assert put(cache, "c", 10, "umbrella") == ["a"]


def test_a_pin_that_takes_the_last_slot_of_a_pool_is_seen_while_others_are_free():
    slots = Slots(4, PageAllocator(8), POOLS)
    for name, tenant in (("guest's", "guest"), ("gold's", "acme")):
        slots.reserve(name, 1, tenant=tenant)
        slots.commit(name)
    assert slots.room_beside_pins("guest's")[0] == 0, "guests may have one slot"
    assert slots.room_beside_pins("gold's")[0] == 1


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        ((GOLD, CachePool("gold", ("x",))), r"cache_pools\.name: .* must differ"),
        ((GOLD, CachePool("silver", ("acme",))), r"cache_pools\.tenants: .* one pool only"),
        ((GOLD, CachePool("silver", ("x",), reserved_share=0.6)), r"reserved_share: 1\.1 must add up"),
    ],
)
def test_pools_that_cannot_stand_side_by_side_are_refused(pools, message):
    with pytest.raises(InvalidRequest, match=message):
        check_pools(pools)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, r"\.name: '' must not be empty"),
        ({"tenants": ()}, r"cache_pools\[p\]\.tenants: \(\) must name"),
        ({"reserved_share": 1.5}, r"reserved_share: 1\.5 must be in \[0, 1\]"),
        ({"max_share": 0}, r"max_share: 0 must be in \(0, 1\]"),
        ({"reserved_share": 0.5, "max_share": 0.4}, r"max_share: 0\.4 must be at least reserved_share"),
    ],
)
def test_a_share_that_breaks_a_rule_is_refused_by_name(options, message):
    with pytest.raises(InvalidRequest, match=message):
        CachePool(**({"name": "p", "tenants": ("t",)} | options))


def test_shares_that_leave_a_pool_no_room_for_the_largest_adapter_are_refused():
    check_room(POOLS, (4, 40), (1, 8))
    with pytest.raises(InvalidRequest, match=r"leaves pool 'trial' \(1, 2\)"):
        check_room(POOLS, (4, 8), (1, 4))
    with pytest.raises(InvalidRequest, match=r"leaves pool '' \(0, 0\)"):
        check_room((CachePool("all", ("x",), reserved_share=1.0),), (4, 8), (1, 4))


pools = st.lists(
    st.tuples(st.floats(0, 0.5), st.floats(0.05, 1)).map(lambda shares: tuple(sorted(shares))),
    min_size=1,
    max_size=2,
).map(
    lambda shares: [
        CachePool(f"p{i}", (f"t{i}",), reserved_share=low, max_share=high)
        for i, (low, high) in enumerate(shares)
    ]
)


@settings(max_examples=60)
@given(
    pools,
    st.lists(
        st.tuples(st.sampled_from(["t0", "t1", "rest"]), st.integers(0, 9), st.integers(1, 60)), max_size=50
    ),
)
def test_reserves_and_maxima_of_the_cache_hold_under_any_sequence(pools, operations):
    cache = CpuCache(max_bytes=100, max_adapters=8, pools=pools)
    shares = Shares((100, 8), pools)
    for tenant, number, num_bytes in operations:
        name = f"{tenant}-{number}"
        before = {key: cache.peek(key).num_bytes for key in cache}
        evicted = put(cache, name, num_bytes, tenant)
        cache.check()
        room = shares.room(shares.pool_of(tenant), {})
        assert (evicted is None) == (num_bytes > room[0] or room[1] < 1), (
            "only what can't ever fit is refused"
        )
        pool_of = {key: shares.pool_of(key.split("-")[0]) for key in before}
        own = [key for key in before if pool_of[key] == shares.pool_of(tenant) and key != name]
        others = [key for key in evicted or () if pool_of[key] != shares.pool_of(tenant)]
        if others:
            assert set(own) <= set(evicted), "others leave when all of the pool's own have"


def _holds_anything(slots: Slots, reserved: list[str], shares: Shares, tenant: str) -> bool:
    pool = shares.pool_of(tenant)
    return any(shares.pool_of(key.split("-")[0]) == pool for key in (*slots, *reserved))


@settings(max_examples=60)
@given(
    pools,
    st.lists(
        st.tuples(st.sampled_from("rrrrcalxep"), st.sampled_from(["t0", "t1", "rest"]), st.integers(0, 5)),
        max_size=60,
    ),
)
def test_reserves_and_maxima_of_the_slots_hold_under_any_sequence(pools, operations):
    slots = Slots(4, PageAllocator(10), pools)
    shares = Shares((4, 10), pools)
    reserved: list[str] = []
    leased: list[str] = []
    for kind, tenant, number in operations:
        name = f"{tenant}-{number}"
        kept = [key for key in slots if slots.leases(key) or slots.is_pinned(key)]
        if kind == "r" and name not in slots:
            num_pages = 1 + number % 3
            if slots.reserve(name, num_pages, tenant=tenant):
                reserved.append(name)
            elif not _holds_anything(slots, reserved, shares, tenant):
                # Within its reserve a pool needs nobody's consent.
                guaranteed = shares.room(
                    shares.pool_of(tenant),
                    {other: (4, 10) for other in shares.pools if other != shares.pool_of(tenant)},
                )
                assert guaranteed[0] < 1 or guaranteed[1] < num_pages
        elif kind == "c" and reserved:
            slots.commit(reserved.pop(0))
        elif kind == "a" and reserved:
            slots.abandon(reserved.pop())
        elif kind == "l" and slots.lease(name) is not None:
            leased.append(name)
        elif kind == "x" and leased:
            slots.release(leased.pop())
        elif kind == "e" and name in slots and not slots.leases(name):
            slots.evict(name)
            kept = [key for key in kept if key != name]
        elif kind == "p" and name in slots:
            slots.pin(name, number % 2 == 0)
        slots.check()
        assert set(kept) <= set(slots)
