"""Pages of the rank pool: each has one owner, and runs stay whole where they can."""

from hypothesis import given
from hypothesis import strategies as st

from data_plane.adapters.pages import PageAllocator


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.integers(0, 20)), max_size=60))
def test_every_page_has_one_owner_under_any_sequence(operations):
    pages = PageAllocator(12)
    owned: list[tuple[int, ...]] = []
    for takes, count, index in operations:
        if takes:
            free = pages.num_free
            taken = pages.allocate(count)
            assert (taken is None) == (count > free), "refused only when too few are free"
            if taken is not None:
                assert len(set(taken)) == count
                owned.append(taken)
        elif owned:
            pages.release(owned.pop(index % len(owned)))
        pages.check(owned)
        assert pages.num_free == 12 - sum(map(len, owned))


@given(st.lists(st.integers(0, 11), unique=True, max_size=11), st.integers(1, 6))
def test_a_run_that_is_long_enough_is_used_whole(released, count):
    pages = PageAllocator(12)
    every = pages.allocate(12)
    assert every is not None
    for page in released:
        pages.release((page,))
    taken = pages.allocate(count)
    runs = "".join("x" if page in released else " " for page in range(12)).split()
    if any(len(run) >= count for run in runs):
        assert taken == tuple(range(taken[0], taken[0] + count))
