"""Which worker takes a request."""

import pytest

from control_plane.errors import NoWorker, Refused
from control_plane.placement.route import Wanted, route
from control_plane.workers.types import Tier, WorkerState
from tests.control_plane.placement.examples import BASE, held, worker

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
