"""What a request waited for its adapter, by when it arrived."""

import pytest

from data_plane.adapters.arrivals import Arrivals, Read
from data_plane.adapters.revision import Tier


def arrivals() -> Arrivals:
    """Read from 10 to 12 s, copied from 15 s on, in its slot at 16 s."""
    known = Arrivals()
    known.read("a", Read(10.0, 12.0, Tier.DISK))
    known.bound("a", copied_s=15.0, bound_s=16.0)
    return known


@pytest.mark.parametrize(
    ("arrival_s", "tier", "load_s"),
    [
        (9.0, Tier.DISK, 6.0),  # from the beginning of the read, not from before it
        (11.0, Tier.DISK, 5.0),
        (13.0, Tier.CPU, 1.0),  # it waited for a slot, not for the load, until the copy began
        (15.5, Tier.CPU, 0.5),
        (16.0, Tier.SLOT, 0.0),
    ],
)
def test_a_request_is_told_the_tier_and_load_time_that_it_saw(arrival_s: float, tier: Tier, load_s: float):
    assert arrivals().of("a").seen_from(arrival_s) == (tier, load_s)


def test_a_read_while_it_is_resident_leaves_its_arrival_as_it_was():
    known = arrivals()
    known.read("a", Read(20.0, 21.0, Tier.SOURCE))
    assert known.of("a").read.tier is Tier.DISK


def test_what_left_its_slot_is_resident_no_longer_but_its_read_is_known():
    known = arrivals()
    known.left_slot("a")
    assert list(known) == []
    known.bound("a", copied_s=30.0, bound_s=31.0)
    assert known.of("a").read.tier is Tier.DISK
    known.forget("a")
    assert list(known) == []
