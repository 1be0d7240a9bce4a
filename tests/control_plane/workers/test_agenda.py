"""The agenda: what is looked at next, and when."""

from control_plane.registry.types import AdapterKey
from control_plane.workers.agenda import Agenda

A, B, C = (AdapterKey("acme", name) for name in "abc")


def agenda() -> Agenda:
    """One in which `c` is wanted most."""
    return Agenda(lambda key: (key != C, 0, key))


def taken(one: Agenda, worker_id: str = "w") -> list[AdapterKey]:
    return list(iter(lambda: one.take(worker_id), None))


def test_the_most_wanted_is_taken_first_and_each_pair_once() -> None:
    one = agenda()
    one.add([("w", B), ("w", C), ("w", A), ("w", B), ("v", B)])
    assert set(one.workers()) == {"w", "v"}
    assert taken(one) == [C, A, B]
    assert one.workers() == ("v",)


def test_a_pair_that_was_taken_can_be_added_again() -> None:
    one = agenda()
    for _ in range(2):
        one.add([("w", A)])
        assert taken(one) == [A]


def test_what_was_postponed_is_in_line_from_its_time_on() -> None:
    one = agenda()
    one.postpone(("w", A), 10.0)
    one.postpone(("w", B), 20.0)
    assert one.next_s == 10.0
    one.ripen(9.9)
    assert taken(one) == []
    one.ripen(10.0)
    assert taken(one) == [A]
    assert one.next_s == 20.0


def test_of_several_times_the_earliest_counts_and_the_others_are_forgotten() -> None:
    one = agenda()
    for at_s in (30.0, 10.0, 20.0):
        one.postpone(("w", A), at_s)
    one.ripen(10.0)
    assert taken(one) == [A]
    assert one.next_s is None
    one.ripen(99.0)
    assert taken(one) == []
