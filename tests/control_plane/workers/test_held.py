"""What is held for a tenant, and which differences of reports count."""

from dataclasses import replace

from control_plane.registry.types import AdapterKey
from control_plane.workers.held import HeldByTenant
from control_plane.workers.types import Tier, WorkerState
from tests.control_plane.placement.examples import MB, held, worker

OTHER = replace(held("x"), key=AdapterKey("globex", "x"))


def test_a_report_replaces_the_one_before_and_only_that_workers():
    index = HeldByTenant()
    index.replace(worker("w-1", held("a"), held("b", tier=Tier.SLOT), OTHER))
    index.replace(worker("w-2", held("a")))
    assert sorted(worker_id for worker_id, _ in index.of("acme")) == ["w-1", "w-1", "w-2"]
    assert (index.bytes_of("acme").cpu_bytes, index.bytes_of("acme").slots) == (3 * MB, 1)
    index.replace(worker("w-1", held("b")))
    assert {(worker_id, one.key.name) for worker_id, one in index.of("acme")} == {("w-1", "b"), ("w-2", "a")}
    assert list(index.of("globex")) == []


def test_a_lost_worker_holds_nothing():
    index = HeldByTenant()
    index.replace(worker("w-1", held("a")))
    index.replace(replace(worker("w-1", held("a")), state=WorkerState.LOST))
    assert index.bytes_of("acme").cpu_bytes == 0


def test_idle_seconds_alone_make_no_other_report():
    before, later = worker("w", held("a", idle_s=1.0)), worker("w", held("a", idle_s=9.0))
    assert before.status == later.status
    assert before.status != worker("w", held("a", leases=1)).status
