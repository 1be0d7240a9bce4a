"""The line of loads that a worker could be given, and where its room ends."""

import math

from control_plane.placement.offers import Offer, Offers
from control_plane.placement.plan import Room
from control_plane.registry.types import AdapterKey

KEYS = [AdapterKey("acme", f"bot-{number}") for number in range(4)]  # the most wanted first


def offer(number: int, size_bytes: int = 10, place: int = 0) -> Offer:
    return Offer((True, number, KEYS[number]), place, place + 1, size_bytes)


def line(*numbers: int) -> Offers:
    offers = Offers()
    for number in numbers:
        offers.replace(KEYS[number], [offer(number)])
    return offers


def granted(offers: Offers) -> list[int]:
    return [number for number, key in enumerate(KEYS) if offers.granted(key)]


def test_the_most_wanted_are_granted_as_far_as_the_room_goes() -> None:
    offers = line(3, 1, 0, 2)
    assert offers.settle(Room(25, math.inf)) == {KEYS[0], KEYS[1]}
    assert granted(offers) == [0, 1]
    assert offers.settle(Room(25, 1)) == {KEYS[1]}
    assert granted(offers) == [0]
    assert offers.settle(Room(-5, math.inf)) == {KEYS[0]}
    assert granted(offers) == []


def test_one_that_is_wanted_more_takes_the_place_of_the_last() -> None:
    offers = line(1, 2)
    offers.settle(Room(20, math.inf))
    offers.replace(KEYS[0], [offer(0)])
    assert offers.settle(Room(20, math.inf)) == {KEYS[2]}
    assert granted(offers) == [0, 1]


def test_what_was_loaded_makes_no_difference_to_the_others() -> None:
    offers = line(0, 1, 2)
    offers.settle(Room(20, math.inf))
    offers.replace(KEYS[0], [])
    offers.settle(Room(10, math.inf))  # it takes the room that was kept for it
    assert granted(offers) == [1]


def test_a_large_one_is_waited_for_not_passed() -> None:
    offers = line(1)
    offers.replace(KEYS[0], [offer(0, size_bytes=50)])
    offers.settle(Room(20, math.inf))
    assert granted(offers) == []


def test_revisions_of_one_adapter_are_granted_one_by_one() -> None:
    offers = Offers()
    offers.replace(KEYS[0], [offer(0), offer(0, place=1)])
    offers.settle(Room(10, math.inf))
    assert offers.granted(KEYS[0]) == [1]
    offers.settle(Room(20, math.inf))
    assert offers.granted(KEYS[0]) == [1, 2]
