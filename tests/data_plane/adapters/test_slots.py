import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.adapters.pages import PageAllocator
from data_plane.adapters.slots import Slots

A, B, C = "sha256:a", "sha256:b", "sha256:c"


def resident(slots: Slots, digest: str, num_pages: int = 1) -> int:
    placement = slots.reserve(digest, num_pages)
    assert placement is not None
    return slots.commit(digest).slot


def make(num_slots: int = 2, num_pages: int = 8) -> Slots:
    return Slots(num_slots, PageAllocator(num_pages))


def test_a_leased_slot_is_never_evicted():
    slots = make(num_slots=1)
    resident(slots, A)
    slots.lease(A)
    assert slots.reserve(B, 1) is None
    with pytest.raises(ValueError, match="1 leases"):
        slots.evict(A)
    slots.release(A)
    assert slots.reserve(B, 1) is not None


def test_a_pinned_slot_is_never_evicted():
    slots = make(num_slots=1)
    resident(slots, A)
    slots.pin(A, True)
    assert slots.reserve(B, 1) is None


def test_a_slot_that_requests_are_about_to_use_is_kept():
    slots = make(num_slots=1)
    resident(slots, A)
    assert slots.reserve(B, 1, keep={A}) is None


def test_the_longest_unused_leaves_first():
    slots = make()
    resident(slots, A)
    resident(slots, B)
    slots.lease(A)
    slots.release(A)
    resident(slots, C)
    assert set(slots) == {A, C}


def test_a_reserved_slot_cannot_be_leased_before_its_pages_are_written():
    slots = make()
    slots.reserve(A, 1)
    assert slots.lease(A) is None
    slots.commit(A)
    assert slots.lease(A) is not None


def test_an_abandoned_reservation_gives_slot_and_pages_back():
    slots = make(num_slots=1, num_pages=1)
    slots.reserve(A, 1)
    slots.abandon(A)
    assert slots.reserve(B, 1) is not None
    slots.check()


def test_pages_make_room_as_slots_do():
    slots = make(num_slots=3, num_pages=4)
    resident(slots, A, 2)
    resident(slots, B, 2)
    placement = slots.reserve(C, 3)
    assert len(placement.emptied) == 2
    assert len(placement.pages) == 3


def test_nobody_leaves_when_leaving_would_not_make_room():
    slots = make(num_slots=3, num_pages=4)
    resident(slots, A, 2)
    resident(slots, B, 2)
    slots.lease(B)
    assert slots.reserve(C, 3) is None
    assert set(slots) == {A, B}


def test_rebinding_keeps_slot_and_leases_and_frees_the_old_pages():
    slots = make(num_slots=1, num_pages=3)
    slot = resident(slots, A, 1)
    slots.lease(A)
    slots.stage(B, 2)
    placement = slots.rebind(A, B)
    assert placement.slot == slot
    assert slots.leases(B) == 1
    assert slots.num_used_pages == 2
    slots.check()


def test_the_shortest_run_that_fits_is_taken():
    pages = PageAllocator(10)
    first, _, third, _ = (pages.allocate(count) for count in (3, 1, 2, 1))
    pages.release(first)
    pages.release(third)
    assert pages.allocate(2) == third
    assert pages.allocate(3) in (first, (7, 8, 9))


def test_pages_are_given_in_pieces_when_no_run_is_long_enough():
    pages = PageAllocator(5)
    a, b, c = pages.allocate(2), pages.allocate(1), pages.allocate(2)
    pages.release(a)
    pages.release(c)
    assert set(pages.allocate(4)) == {*a, *c}
    with pytest.raises(ValueError, match="free already"):
        PageAllocator(3).release((1,))
    assert b is not None


@given(st.lists(st.tuples(st.sampled_from("rclxepsub"), st.integers(0, 5), st.integers(1, 4)), max_size=80))
def test_every_slot_and_page_has_one_owner_under_any_sequence(operations):
    slots = make(num_slots=3, num_pages=8)
    reserved: set[str] = set()
    staged: set[str] = set()
    for kind, index, count in operations:
        digest = f"sha256:{index}"
        other = f"sha256:{(index + 1) % 6}"
        free = digest not in slots and digest not in reserved and digest not in staged
        leased = {held: slots.leases(held) for held in slots if slots.leases(held)}
        if kind == "r" and free and slots.reserve(digest, count):
            reserved.add(digest)
        elif kind == "c" and digest in reserved:
            slots.commit(digest)
            reserved.discard(digest)
        elif kind == "b" and digest in reserved:
            slots.abandon(digest)
            reserved.discard(digest)
        elif kind == "l":
            slots.lease(digest)
            leased = {}
        elif kind == "x" and slots.leases(digest):
            slots.release(digest)
            leased = {}
        elif kind == "e" and digest in slots and not slots.leases(digest):
            slots.evict(digest)
        elif kind == "p" and digest in slots:
            slots.pin(digest, bool(count % 2))
        elif kind == "s" and free and slots.stage(digest, count):
            staged.add(digest)
        elif kind == "u" and digest in staged:
            staged.discard(digest)
            if other in slots:
                slots.rebind(other, digest)
                leased.pop(other, None)
            else:
                slots.unstage(digest)
        slots.check()
        assert all(slots.leases(held) == leases for held, leases in leased.items())
