"""The worker's reports: whole once, then what changed."""

import random
import time
from collections import Counter
from dataclasses import replace

from data_plane.adapters.revision import Revision, Tier
from data_plane.engine.events import EngineStatus, HeldAdapter
from data_plane.sync.convert import held_to_proto
from data_plane.sync.observed import Observed
from protos.fleet.v1 import fleet_pb2
from protos.inference.v1 import inference_pb2
from protos.sync.v1 import sync_pb2

EMPTY = EngineStatus(
    adapters=(), running_requests=0, waiting_requests=0, free_blocks=9, slot_bytes_used=0, cpu_bytes_used=0,
    computed_tokens=0, cold_loads=0, max_adapters_in_step=0, steps=0,
)  # fmt: skip


def held(number: int, **changes: object) -> HeldAdapter:
    adapter = HeldAdapter(
        revision=Revision("acme", f"bot{number}", 1, f"sha256:{number}"),
        rank=8,
        tier=Tier.CPU,
        slot_bytes=0,
        cpu_bytes=100,
        disk_bytes=40,
        leases=0,
        pinned=False,
        used_s=5.0,
    )
    return replace(adapter, **changes)


class Reports:
    """Reports, how often each digest was converted for them, and what a reader of them knows."""

    def __init__(self, *, takes_changes: bool = True) -> None:
        self.converted: Counter[str] = Counter()
        self.known: dict[str, fleet_pb2.HeldAdapter] = {}
        self.observed = Observed(self._convert)
        self.observed.takes_changes = takes_changes

    def report(self, *adapters: HeldAdapter, taken_s: float = 7.0, **load: int) -> sync_pb2.ObservedState:
        self.converted.clear()
        status = replace(EMPTY, adapters=adapters, taken_s=taken_s, **load)
        report = self.observed.report(status, 1).observed
        if not report.changes_only:
            self.known.clear()
        for digest in report.gone_digests:
            del self.known[digest]
        self.known |= {one.digest: one for one in report.status.adapters}
        return report

    def _convert(self, adapter: HeldAdapter, now_s: float) -> fleet_pb2.HeldAdapter:
        self.converted[adapter.revision.digest] += 1
        return held_to_proto(adapter, now_s)


def test_a_report_says_all_that_is_known_of_an_adapter():
    adapter = held(1, tier=Tier.SLOT, slot_bytes=7, leases=2, pinned=True)
    (found,) = Reports().report(adapter).status.adapters
    assert found == fleet_pb2.HeldAdapter(
        tenant="acme", name="bot1", revision=1, digest="sha256:1", rank=8, tier=inference_pb2.TIER_SLOT,
        size_bytes=147, slot_bytes=7, cpu_bytes=100, disk_bytes=40, leases=2, pinned=True, idle_s=2.0,
    )  # fmt: skip


def test_after_the_first_report_only_what_changed_is_told_among_two_thousand():
    reports, adapters = Reports(), [held(number) for number in range(2000)]
    assert not reports.report(*adapters).changes_only
    assert len(reports.converted) == 2000
    assert not reports.report(*adapters).status.adapters
    adapters[7] = held(7, leases=1)
    del adapters[1000]
    report = reports.report(*adapters, held(2000))
    assert reports.converted == {"sha256:7": 1, "sha256:2000": 1}
    assert list(report.gone_digests) == ["sha256:1000"]
    assert (report.changes_only, report.sequence) == (True, 3)
    assert len(reports.known) == 2000


def test_a_load_that_falls_to_zero_is_reported_as_zero():
    reports = Reports()
    assert reports.report(running_requests=3, steps=4).status.running_requests == 3
    status = reports.report(running_requests=0, steps=5).status
    assert (status.running_requests, status.steps, status.free_blocks) == (0, 5, 9)


def test_a_control_plane_that_takes_no_changes_is_told_everything_every_time():
    reports, adapter = Reports(takes_changes=False), held(1)
    for taken_s in (7.0, 9.0):
        report = reports.report(adapter, taken_s=taken_s)
        assert not report.changes_only
        assert report.status.adapters[0].idle_s == taken_s - 5.0


def test_a_whole_report_is_made_when_it_is_asked_for_and_changes_follow_it():
    reports = Reports()
    reports.report(held(1), held(2))
    reports.observed.tell_whole()
    report = reports.report(held(1), held(2))
    assert (report.changes_only, len(report.status.adapters), report.sequence) == (False, 2, 2)
    assert reports.report(held(1)).changes_only


def test_after_any_sequence_of_changes_a_reader_of_the_reports_knows_what_is_held():
    reports, rng = Reports(), random.Random(0)
    state: dict[int, HeldAdapter] = {}
    for taken_s in range(300):
        for number in rng.sample(range(12), 3):
            if rng.random() < 0.4:
                state.pop(number, None)
            else:
                state[number] = held(number, leases=rng.randrange(3), used_s=float(taken_s))
        if rng.random() < 0.05:
            reports.observed.tell_whole()
        order = rng.sample(sorted(state), len(state))
        reports.report(*(state[number] for number in order), taken_s=float(taken_s))
        expected = {adapter.revision.digest: held_to_proto(adapter, 0.0) for adapter in state.values()}
        for one in (*reports.known.values(), *expected.values()):
            one.idle_s = 0.0
        assert reports.known == expected


def test_a_change_among_two_thousand_is_reported_in_a_fraction_of_the_first_report():
    observed, adapters = Observed(), [held(number) for number in range(2000)]
    observed.takes_changes = True

    def report_s(taken_s: float) -> tuple[float, int]:
        status = replace(EMPTY, adapters=tuple(adapters), taken_s=taken_s)
        begun_s = time.perf_counter()
        size = len(observed.report(status, 1).SerializeToString())
        return time.perf_counter() - begun_s, size

    first_s, first_bytes = report_s(10.0)
    later = []
    for leases in range(20):
        adapters[leases] = held(leases, leases=leases)
        later.append(report_s(10.0 + leases / 1000))
    later_s, later_bytes = min(later)
    print(f"of 2,000 adapters: {first_s * 1e3:.2f} ms, {first_bytes} bytes")
    print(f"of one change: {later_s * 1e3:.2f} ms, {later_bytes} bytes")
    assert later_s < first_s / 3
    assert later_bytes < 300
