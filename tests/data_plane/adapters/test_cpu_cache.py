import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.adapters.cpu_cache import CpuCache
from tests.data_plane.fakes import FakePacked

A, B, C = "sha256:a", "sha256:b", "sha256:c"


def put(cache: CpuCache, digest: str, num_bytes: int = 10) -> list[str] | None:
    return cache.put(digest, FakePacked(digest, num_bytes=num_bytes))


def test_the_longest_unused_leaves_when_the_number_is_full():
    cache = CpuCache(max_bytes=1000, max_adapters=2)
    put(cache, A)
    put(cache, B)
    cache.touch(A)
    assert put(cache, C) == [B]
    assert list(cache) == [A, C]


def test_as_many_leave_as_the_bytes_need():
    cache = CpuCache(max_bytes=30, max_adapters=9)
    for digest in (A, B):
        put(cache, digest, 15)
    assert put(cache, C, 20) == [A, B]
    assert cache.num_bytes == 20


def test_held_and_pinned_adapters_stay():
    cache = CpuCache(max_bytes=20, max_adapters=2)
    put(cache, A)
    put(cache, B)
    cache.hold(A)
    cache.pin(B, True)
    assert put(cache, C) is None
    with pytest.raises(ValueError, match="being copied"):
        cache.remove(A)
    cache.unhold(A)
    assert put(cache, C) == [A]


def test_replacing_an_adapter_counts_its_bytes_once():
    cache = CpuCache(max_bytes=100, max_adapters=2)
    put(cache, A, 40)
    assert put(cache, A, 70) == []
    assert cache.num_bytes == 70
    cache.check()


def test_what_can_never_fit_beside_the_pins_is_known():
    cache = CpuCache(max_bytes=100, max_adapters=2)
    put(cache, A, 40)
    cache.pin(A, True)
    assert cache.can_ever_hold(FakePacked(B, num_bytes=60))
    assert not cache.can_ever_hold(FakePacked(B, num_bytes=61))


@given(st.lists(st.tuples(st.sampled_from("phurnt"), st.integers(0, 4), st.integers(1, 60)), max_size=60))
def test_bounds_and_sums_hold_under_any_sequence(operations):
    cache = CpuCache(max_bytes=100, max_adapters=3)
    held: list[str] = []
    for kind, index, num_bytes in operations:
        digest = f"sha256:{index}"
        kept = [key for key in cache if key in held or cache.is_pinned(key)]
        if kind == "p":
            put(cache, digest, num_bytes)
        elif kind == "h" and digest in cache:
            cache.hold(digest)
            held.append(digest)
        elif kind == "u" and digest in held:
            cache.unhold(digest)
            held.remove(digest)
        elif kind == "r" and digest not in held:
            cache.remove(digest)
            kept = [key for key in kept if key != digest]
        elif kind == "n" and digest in cache:
            cache.pin(digest, num_bytes % 2 == 0)
        else:
            cache.touch(digest)
        cache.check()
        assert set(kept) <= set(cache)
