"""Reports of a stream: what they come to, and when a whole one must come."""

import math

import pytest

from control_plane.workers import convert
from control_plane.workers.holdings import Holdings
from control_plane.workers.reports import Reports
from control_plane.workers.types import WorkerStatus
from protos.fleet.v1 import fleet_pb2 as fleet
from protos.sync.v1 import sync_pb2 as sync

NOW_S = 1000.0


def report(
    sequence: int, *names: str, gone: str = "", changes: bool = True, running: int = 0
) -> sync.ObservedState:
    adapters = [
        fleet.HeldAdapter(tenant="acme", name=name, revision=1, digest=name, idle_s=5.0) for name in names
    ]
    return sync.ObservedState(
        status=fleet.WorkerStatus(adapters=adapters, running_requests=running),
        sequence=sequence,
        changes_only=changes,
        gone_digests=gone.split(),
    )


def whole(sequence: int, *names: str, **more: int) -> sync.ObservedState:
    return report(sequence, *names, changes=False, **more)


def heard(reports: Reports, *said: sync.ObservedState) -> list[bool]:
    return [reports.hear(one, NOW_S) for one in said]


def test_changes_are_taken_as_one():
    reports = Reports()
    assert all(heard(reports, whole(1, "a", "b")))
    first = reports.take(WorkerStatus())
    assert (first.whole, set(first.status.held)) == (True, {"a", "b"})
    assert all(heard(reports, report(2, "c"), report(3, "d", gone="a c"), report(4, "a", running=2)))
    second = reports.take(first.status)
    assert set(second.status.held) == {"a", "b", "d"}
    assert second.status.running_requests == 2
    assert second.change is not None
    assert set(second.change.status.held) == {"a", "d"}
    assert second.change.gone == ("c",)
    assert first.status.after(second.change) == second.status
    assert second.status.held["d"].used_s == NOW_S - 5.0


def test_what_is_named_as_held_and_as_gone_is_held():
    reports = Reports()
    heard(reports, whole(1, "a"), report(2, "b", gone="b a"))
    holdings = reports.take(WorkerStatus()).status.holdings
    assert list(holdings.by_digest) == ["b"]
    assert holdings == Holdings(holdings.by_digest.values())
    assert [key.name for key in holdings.by_key] == ["b"]


def test_a_report_of_nothing_changes_nothing():
    reports = Reports()
    heard(reports, whole(1, "a"))
    before = reports.take(WorkerStatus()).status
    heard(reports, report(2))
    after = reports.take(before)
    assert (after.change, after.whole, after.status) == (None, False, before)
    heard(reports, report(3, running=1))
    change = reports.take(before).change
    assert change is not None
    assert change.status.running_requests == 1


@pytest.mark.parametrize("idle_s", [-1.0, math.nan, math.inf, 1e300])
def test_a_nonsensical_time_is_now(idle_s: float):
    reports, said = Reports(), whole(1, "a")
    said.status.adapters[0].idle_s = idle_s
    said.status.adapters[0].last_use_time.seconds = 1 << 62
    heard(reports, said)
    (held,) = reports.take(WorkerStatus()).status.adapters
    assert held.used_s == NOW_S
    assert convert.held_from_proto(convert.held_to_proto(held), 0.0) == held


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_after_a_gap_nothing_counts_until_a_whole_report_has_come(lost: int):
    said = [whole(1, "a"), report(2, "b"), report(3, "c"), report(4, "d")]
    del said[lost - 1]
    reports = Reports()
    asked = [not known for known in heard(reports, *said)]
    assert any(asked)
    assert reports.take(WorkerStatus()).status.held.keys() <= {"a", "b"}
    heard(reports, whole(5, "x"), report(6, "y"))
    assert set(reports.take(WorkerStatus()).status.held) == {"x", "y"}


def test_a_worker_whose_reports_are_always_whole_is_understood():
    reports, status = Reports(), WorkerStatus()
    for names in (["a"], ["a", "b"], ["b"]):
        assert all(heard(reports, whole(0, *names)))
        observation = reports.take(status)
        assert observation.whole
        status = observation.status
        assert sorted(status.held) == names
    heard(reports, whole(0, "b"))
    again = reports.take(status)
    assert (again.whole, again.change) == (False, None)
