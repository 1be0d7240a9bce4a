"""The worker's report: whole each time, converted only where something changed."""

import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from data_plane.adapters.revision import Revision, Tier
from data_plane.engine.events import EngineStatus, HeldAdapter
from data_plane.sync.convert import held_to_proto
from data_plane.sync.observed import IDLE_REFRESH_S, Observed
from protos.fleet.v1 import fleet_pb2
from protos.inference.v1 import inference_pb2

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
    """Reports, and how often each digest was converted for them."""

    def __init__(self) -> None:
        self.converted: Counter[str] = Counter()
        self._observed = Observed(self._convert)

    def status(self, *adapters: HeldAdapter, taken_s: float = 7.0, **load: int) -> fleet_pb2.WorkerStatus:
        self.converted.clear()
        status = replace(EMPTY, adapters=adapters, taken_s=taken_s, **load)
        return self._observed.update(status, 1).observed.status

    def _convert(self, adapter: HeldAdapter, now_s: float) -> fleet_pb2.HeldAdapter:
        self.converted[adapter.revision.digest] += 1
        return held_to_proto(adapter, now_s)


def test_a_report_says_all_that_is_known_of_an_adapter():
    adapter = held(1, tier=Tier.SLOT, slot_bytes=7, leases=2, pinned=True)
    (found,) = Reports().status(adapter).adapters
    assert found == fleet_pb2.HeldAdapter(
        tenant="acme", name="bot1", revision=1, digest="sha256:1", rank=8, tier=inference_pb2.TIER_SLOT,
        size_bytes=147, slot_bytes=7, cpu_bytes=100, disk_bytes=40, leases=2, pinned=True, idle_s=2.0,
    )  # fmt: skip


def test_only_what_changed_is_converted_among_two_thousand():
    reports, adapters = Reports(), [held(number) for number in range(2000)]
    reports.status(*adapters)
    assert len(reports.converted) == 2000
    reports.status(*adapters)
    assert not reports.converted
    adapters[7] = held(7, leases=1)
    del adapters[1000]
    status = reports.status(*adapters, held(2000))
    assert reports.converted == {"sha256:7": 1, "sha256:2000": 1}
    assert len(status.adapters) == 2000
    assert {adapter.digest: adapter.leases for adapter in status.adapters}["sha256:7"] == 1


def test_a_load_that_falls_to_zero_is_reported_as_zero():
    reports = Reports()
    assert reports.status(running_requests=3, steps=4).running_requests == 3
    status = reports.status(running_requests=0, steps=5)
    assert (status.running_requests, status.steps, status.free_blocks) == (0, 5, 9)


def test_what_is_unchanged_grows_idle_all_the_same():
    reports, adapter = Reports(), held(1, used_s=5.0)
    assert reports.status(adapter, taken_s=7.0).adapters[0].idle_s == pytest.approx(2.0)
    found = reports.status(adapter, taken_s=7.0 + IDLE_REFRESH_S).adapters[0]
    assert found.idle_s == pytest.approx(2.0 + IDLE_REFRESH_S)
    assert not reports.converted


def test_after_any_sequence_of_changes_the_report_is_what_is_held():
    reports, rng = Reports(), random.Random(0)
    state: dict[int, HeldAdapter] = {}
    for taken_s in range(300):
        for number in rng.sample(range(12), 3):
            if rng.random() < 0.4:
                state.pop(number, None)
            else:
                state[number] = held(number, leases=rng.randrange(3))
        order = rng.sample(sorted(state), len(state))
        status = reports.status(*(state[number] for number in order), taken_s=float(taken_s))
        found = {adapter.digest: adapter for adapter in status.adapters}
        assert found == {
            adapter.revision.digest: held_to_proto(adapter, float(taken_s)) for adapter in state.values()
        }
        assert len(status.adapters) == len(state)


def test_a_change_among_two_thousand_is_reported_in_a_fraction_of_the_first_report():
    observed, adapters = Observed(), [held(number) for number in range(2000)]

    def report_s(taken_s: float) -> float:
        status = replace(EMPTY, adapters=tuple(adapters), taken_s=taken_s)
        begun_s = time.perf_counter()
        observed.update(status, 1).SerializeToString()
        return time.perf_counter() - begun_s

    first_s = report_s(10.0)
    later_s = []
    for leases in range(20):
        adapters[leases] = held(leases, leases=leases)
        later_s.append(report_s(10.0 + leases / 1000))
    print(f"report of 2,000: first {first_s * 1e3:.2f} ms, of one change {min(later_s) * 1e3:.2f} ms")
    assert min(later_s) < first_s / 3
