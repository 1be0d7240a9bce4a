"""What is held for a tenant, and which differences of reports count."""

import random
from dataclasses import replace

from control_plane.registry.types import AdapterKey
from control_plane.workers.held import HeldByTenant
from control_plane.workers.holdings import HeldAdapter, Tier
from control_plane.workers.types import StatusChange, WorkerState
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


def test_after_any_changes_it_is_as_if_all_had_been_read_at_once():
    rng, names = random.Random(0), "abcdef"
    index, now = HeldByTenant(), worker("w")
    index.replace(now)
    for _ in range(300):
        changed = [_one(name, leases=rng.randrange(2)) for name in rng.sample(names, 2)]
        gone = [one for one in now.status.adapters if rng.random() < 0.3 and one not in changed]
        gone = [one for one in gone if one.digest not in {other.digest for other in changed}]
        change = StatusChange(worker("w", *changed).status, tuple(one.digest for one in gone))
        now = replace(now, status=now.status.after(change))
        index.change("w", changed, gone)
        anew = HeldByTenant()
        anew.replace(now)
        for tenant in ("acme", "globex"):
            assert index.bytes_of(tenant) == anew.bytes_of(tenant)
    index.replace(replace(now, state=WorkerState.LOST))
    assert (index._held, index._tenants) == ({}, {})


def _one(name: str, **more: object) -> HeldAdapter:
    one = held(name, **more)
    return replace(one, key=AdapterKey("globex", name)) if name in "abc" else one


def test_a_lost_worker_holds_nothing():
    index = HeldByTenant()
    index.replace(worker("w-1", held("a")))
    index.replace(replace(worker("w-1", held("a")), state=WorkerState.LOST))
    assert index.bytes_of("acme").cpu_bytes == 0


def test_idle_seconds_alone_make_no_other_report():
    before, later = worker("w", held("a", idle_s=1.0)), worker("w", held("a", idle_s=9.0))
    assert before.status == later.status
    assert before.status != worker("w", held("a", leases=1)).status
