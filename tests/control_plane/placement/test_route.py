"""Which worker takes a request."""

from dataclasses import replace

import pytest

from control_plane.errors import NoWorker, Refused
from control_plane.placement.route import Wanted, route
from control_plane.workers.holdings import Tier
from control_plane.workers.types import WorkerState
from tests.control_plane.placement.examples import BASE, MB, held, worker

BOT = Wanted(BASE, "sha256:bot-1", rank=8)


def test_a_slot_is_nearer_than_the_cpu_cache_and_that_than_nothing():
    slot, cpu, none = worker("a", held("bot", tier=Tier.SLOT)), worker("b", held("bot")), worker("c")
    assert route(BOT, [none, cpu, slot]) is slot
    assert route(BOT, [none, cpu]) is cpu


def test_a_worker_with_a_slot_to_spare_beats_one_that_must_evict():
    full = worker("a", held("x", tier=Tier.SLOT), held("y", tier=Tier.SLOT))
    spare = worker("b", status={"running_requests": 1})
    assert route(BOT, [full, spare]) is spare


def test_of_equally_near_workers_the_least_loaded_is_chosen():
    busy = worker("a", held("bot"), status={"running_requests": 3})
    idle = worker("b", held("bot"), status={"running_requests": 1})
    assert route(BOT, [busy, idle]) is idle


def test_a_saturated_holder_is_spilled_over():
    saturated = worker(
        "a", held("bot", tier=Tier.SLOT), status={"running_requests": 4, "waiting_requests": 2}
    )
    idle = worker("b")
    assert route(BOT, [saturated, idle]) is idle


def test_a_full_holder_with_a_short_queue_is_still_preferred():
    full = worker("a", held("bot", tier=Tier.SLOT), status={"running_requests": 4, "waiting_requests": 1})
    assert route(BOT, [full, worker("b")]) is full


def test_requests_not_reported_yet_count_as_load():
    chosen = route(Wanted(BASE), [worker("a"), worker("b")], in_flight={"a": 2})
    assert chosen.worker_id == "b"


@pytest.mark.parametrize("state", [WorkerState.CORDONED, WorkerState.DRAINING, WorkerState.LOST])
def test_only_ready_workers_take_requests(state: WorkerState):
    with pytest.raises(NoWorker):
        route(BOT, [worker("a", held("bot", tier=Tier.SLOT), state=state)])


def test_another_base_model_or_a_lower_rank_cannot_serve():
    with pytest.raises(NoWorker):
        route(BOT, [worker("a", base_model="qwen")])
    able = worker("c")
    assert route(BOT, [worker("b", capacity={"max_lora_rank": 4}), able]) is able


def test_a_rank_above_that_of_every_worker_is_refused_with_both_numbers():
    with pytest.raises(Refused, match="rank 8 is above max_lora_rank 4"):
        route(BOT, [worker("a", capacity={"max_lora_rank": 4})])


def test_a_worker_that_failed_this_request_is_not_asked_again():
    holder, other = worker("a", held("bot")), worker("b")
    assert route(BOT, [holder, other], excluded={"a"}) is other
    with pytest.raises(NoWorker):
        route(BOT, [holder], excluded={"a"})


def test_different_adapters_spread_over_equal_workers():
    workers = [worker(f"w{number}") for number in range(4)]
    chosen = {route(Wanted(BASE, f"sha256:{n}", 8), workers).worker_id for n in range(64)}
    assert chosen == {"w0", "w1", "w2", "w3"}


def test_when_all_are_equally_saturated_the_holder_still_takes_its_requests():
    busy = {"running_requests": 4, "waiting_requests": 3}
    holder = worker("a", held("bot", tier=Tier.SLOT), status=busy)
    other = worker("b", status={"running_requests": 4, "waiting_requests": 2})
    assert route(BOT, [holder, other]) is holder


def test_an_adapter_that_was_spilled_is_served_by_both_and_goes_to_and_fro_with_the_load_alone():
    first = worker("a", held("bot", tier=Tier.SLOT), status={"running_requests": 4, "waiting_requests": 2})
    second = worker("b", held("bot", tier=Tier.SLOT), status={"running_requests": 2})
    third = worker("c")
    assert route(BOT, [first, second, third]) is second  # not on to a third one


def test_a_cold_adapter_goes_where_there_is_room_rather_than_where_it_evicts():
    full = worker("a", held("x"), held("y"), capacity={"cpu_bytes": 2 * MB, "max_loras": 9})
    roomy = worker("b", held("z"), status={"running_requests": 1}, capacity={"cpu_bytes": 4 * MB})
    assert route(replace(BOT, size_bytes=MB), [full, roomy]) is roomy


def test_a_cold_adapter_goes_where_what_it_evicts_was_idle_longest():
    capacity = {"max_cpu_loras": 2}
    recent = worker("a", held("v", idle_s=50.0), held("w", idle_s=1.0), capacity=capacity)
    old = worker("b", held("x", idle_s=90.0), held("y", idle_s=1.0), capacity=capacity)
    busier = replace(old, status=replace(old.status, running_requests=1))
    assert route(BOT, [recent, busier]) is busier
    too_busy = replace(old, status=replace(old.status, running_requests=2))  # half a batch more
    assert route(BOT, [recent, too_busy]) is recent


def test_what_is_leased_or_pinned_or_not_in_memory_is_not_counted_as_idle():
    kept = (
        held("v", idle_s=90.0, pinned=True),
        held("w", idle_s=80.0, leases=1),
        held("x", idle_s=70.0, tier=Tier.DISK),
        held("y", idle_s=5.0),
    )
    assert worker("a", *kept).status.unused_since_s == 995.0


def test_a_worker_with_it_on_disk_is_nearer_than_one_without():
    capacity = {"max_cpu_loras": 1}
    disk = worker("a", held("bot", tier=Tier.DISK), status={"running_requests": 2}, capacity=capacity)
    assert route(BOT, [disk, worker("b")]) is disk
