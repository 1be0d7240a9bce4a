"""The disk cache by itself: bounded, atomic, the longest unused out first, there after a restart."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.adapters.disk_cache import LANDING, DiskCache
from data_plane.errors import InvalidRequest


def digest(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def put(cache: DiskCache, name: str, num_bytes: int = 10) -> bool:
    return cache.put(digest(name), {"weights": bytes(num_bytes)})


def stamp(cache: DiskCache, name: str, seconds: int) -> None:
    os.utime(cache.directory / digest(name).removeprefix("sha256:"), (seconds, seconds))


def on_disk(cache: DiskCache) -> int:
    return sum(file.stat().st_size for file in cache.directory.rglob("weights"))


def test_the_longest_unused_leaves_when_the_bytes_are_full(tmp_path: Path):
    cache = DiskCache(tmp_path, 30)
    for name in ("a", "b", "c"):
        put(cache, name)
    with cache.reading(digest("a")) as entry:
        assert (entry / "weights").read_bytes() == bytes(10)
    put(cache, "d")
    assert [name for name in "abcd" if digest(name) in cache] == ["a", "c", "d"]
    assert cache.num_bytes == on_disk(cache) == 30


def test_entries_survive_a_restart_in_their_order_of_use(tmp_path: Path):
    cache = DiskCache(tmp_path, 30)
    for seconds, name in enumerate(("a", "b", "c")):
        put(cache, name)
        stamp(cache, name, 1000 - seconds)
    cache.close()
    again = DiskCache(tmp_path, 30)
    put(again, "d")
    assert [name for name in "abcd" if digest(name) in again] == ["a", "b", "d"]


def test_a_lowered_bound_holds_after_the_restart(tmp_path: Path):
    cache = DiskCache(tmp_path, 30)
    for name in ("a", "b", "c"):
        put(cache, name)
    cache.close()
    again = DiskCache(tmp_path, 15)
    assert (len(again), again.num_bytes, on_disk(again)) == (1, 10, 10)


def test_what_a_dead_process_left_half_written_is_no_entry(tmp_path: Path):
    half = tmp_path / f"{LANDING}dead"
    half.mkdir()
    (half / "weights").write_bytes(b"half")
    cache = DiskCache(tmp_path, 30)
    assert (len(cache), cache.num_bytes, half.exists()) == (0, 0, False)


def test_an_entry_that_is_being_read_is_not_written_again(tmp_path: Path):
    cache = DiskCache(tmp_path, 30)
    put(cache, "a")
    with cache.reading(digest("a")) as entry:
        inode = entry.stat().st_ino
        assert put(cache, "a")
        assert entry.stat().st_ino == inode
    assert (cache.num_bytes, on_disk(cache), len(cache)) == (10, 10, 1)
    assert list(tmp_path.glob(f"{LANDING}*")) == []


def test_sizes_are_known_by_digest_and_changes_are_told_once(tmp_path: Path):
    cache = DiskCache(tmp_path, 25)
    put(cache, "a", 15)
    assert (cache.size_of(digest("a")), cache.size_of(digest("b")), cache.size_of("../a")) == (15, 0, 0)
    assert cache.take_changed() == {digest("a")}
    put(cache, "b", 20)
    assert cache.take_changed() == {digest("a"), digest("b")}, "one came, and the other left for it"
    assert cache.take_changed() == set()


def test_an_entry_that_is_being_read_stays(tmp_path: Path):
    cache = DiskCache(tmp_path, 15)
    put(cache, "a")
    with cache.reading(digest("a")) as entry:
        assert not put(cache, "b")
        assert (entry / "weights").exists()
    assert put(cache, "b")


def test_what_is_larger_than_the_bound_evicts_nobody(tmp_path: Path):
    cache = DiskCache(tmp_path, 30)
    put(cache, "a")
    assert not put(cache, "b", 31)
    assert digest("a") in cache


def test_a_digest_that_is_no_digest_names_no_file(tmp_path: Path):
    cache = DiskCache(tmp_path / "cache", 30)
    assert not cache.put("sha256:../../escape", {"weights": b"x"})
    with cache.reading("sha256:../../escape") as entry:
        assert entry is None
    assert len(cache) == 0


def test_a_directory_serves_one_process_at_a_time(tmp_path: Path):
    cache = DiskCache(tmp_path, 30)
    with pytest.raises(InvalidRequest, match=r"disk_cache_dir: .* is used by another worker"):
        DiskCache(tmp_path, 30)
    cache.close()
    DiskCache(tmp_path, 30).close()


def test_a_disk_that_takes_nothing_is_no_error(tmp_path: Path):
    cache = DiskCache(tmp_path, 30)
    assert not cache.put(digest("a"), {"no/such/directory": b"x"})
    assert (cache.num_bytes, list(tmp_path.glob(f"{LANDING}*"))) == (0, [])


@settings(max_examples=30, deadline=None)
@given(
    operations=st.lists(
        st.tuples(st.sampled_from("prd"), st.sampled_from("abcde"), st.integers(1, 40)), max_size=25
    )
)
def test_the_bound_and_the_count_hold_under_any_sequence(
    operations, tmp_path_factory: pytest.TempPathFactory
):
    cache = DiskCache(tmp_path_factory.mktemp("cache"), 60)
    for kind, name, num_bytes in operations:
        if kind == "p":
            put(cache, name, num_bytes)
        elif kind == "r":
            with cache.reading(digest(name)) as entry:
                assert (entry is not None) == (digest(name) in cache)
        else:
            cache.drop(digest(name))
        assert cache.num_bytes == on_disk(cache) <= 60
    cache.close()
