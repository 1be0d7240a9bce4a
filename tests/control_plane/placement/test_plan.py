"""Desired − observed → commands."""

from dataclasses import replace

from control_plane.placement.commands import Drain, Evict, Load, Pin, Reload
from control_plane.placement.plan import holders, plan
from control_plane.registry.types import Adapter, AdapterKey, PinTier, ReloadPolicy, TrafficWeight
from control_plane.workers.types import Worker, WorkerState
from tests.control_plane.placement.examples import MB, adapter, held, worker

BOT = adapter("bot")


def planned(adapters: list[Adapter], *workers: Worker, num_holders: int = 1) -> list[object]:
    by_key = {one.key: one for one in adapters}
    return [command.action for command in plan(by_key, workers, version=99, num_holders=num_holders)]


def test_a_new_adapter_is_offered_to_its_holders_cpu_cache():
    assert planned([BOT], worker()) == [Load(BOT.key, BOT.current, into_slot=False)]


def test_nothing_is_commanded_once_desired_is_observed():
    assert planned([BOT], worker("w", held("bot"))) == []


def test_a_command_carries_the_adapters_generation():
    (command,) = plan({BOT.key: replace(BOT, generation=41)}, [worker()], version=99, num_holders=1)
    assert command.generation == 41


def test_an_older_revision_is_reloaded_with_the_adapters_policy():
    newer = adapter("bot", current=2, reload_policy=ReloadPolicy.DRAIN)
    expected = Reload(newer.key, newer.current, ReloadPolicy.DRAIN, "sha256:bot-1")
    assert planned([newer], worker("w", held("bot", 1))) == [expected]


def test_an_older_revision_beside_the_current_one_is_left_to_its_requests():
    newer = adapter("bot", current=2)
    assert planned([newer], worker("w", held("bot", 1), held("bot", 2))) == []


def test_a_revision_with_traffic_of_its_own_is_not_stale():
    split = adapter("bot", current=2, traffic=(TrafficWeight(1, 50), TrafficWeight(2, 50)))
    assert planned([split], worker("w", held("bot", 1), held("bot", 2))) == []


def test_every_revision_with_traffic_is_offered_and_none_without():
    split = adapter("bot", current=3, traffic=(TrafficWeight(2, 1), TrafficWeight(3, 9), TrafficWeight(1, 0)))
    assert planned([split], worker()) == [
        Load(split.key, split.revision(3), into_slot=False),
        Load(split.key, split.revision(2), into_slot=False),
    ]
    assert planned([split], worker("w", held("bot", 3))) == [Load(split.key, split.revision(2))]


def test_a_worker_with_only_a_stale_revision_gets_the_current_one_in_its_place_and_the_others_beside_it():
    split = adapter("bot", current=3, traffic=(TrafficWeight(2, 1), TrafficWeight(3, 9)))
    assert planned([split], worker("w", held("bot", 1))) == [
        Reload(split.key, split.current, split.reload_policy, "sha256:bot-1"),
        Load(split.key, split.revision(2)),
    ]


def test_a_deleted_adapter_is_evicted_at_the_registrys_version():
    (command,) = plan({}, [worker("w", held("bot"))], version=99, num_holders=1)
    assert command.action == Evict(AdapterKey("acme", "bot"), "sha256:bot-1")
    assert command.generation == 99


def test_offers_stop_when_the_cpu_cache_is_full():
    adapters = [adapter(f"bot-{number}", size_bytes=30 * MB) for number in range(5)]
    assert len(planned(adapters, worker("w", capacity={"cpu_bytes": 100 * MB}))) == 3


def test_offers_stop_when_the_cpu_cache_has_no_place():
    adapters = [adapter(f"bot-{number}") for number in range(5)]
    offers = planned(adapters, worker("w", held("other-deleted"), capacity={"max_cpu_loras": 3}))
    assert sum(isinstance(offer, Load) for offer in offers) == 2


def test_pinned_and_newest_adapters_are_offered_first():
    old, new = adapter("old", resource_version=1), adapter("new", resource_version=9)
    pinned = adapter("pinned", resource_version=2, pin=PinTier.CPU)
    offers = planned([old, new, pinned], worker("w", capacity={"cpu_bytes": 2 * MB}))
    assert [offer.key.name for offer in offers if isinstance(offer, Load)] == ["pinned", "new"]


def test_a_pinned_adapter_is_pinned_on_its_holder_and_unpinned_elsewhere():
    pinned = adapter("bot", pin=PinTier.SLOT)
    (holder,) = holders(pinned, [worker("a"), worker("b")], num_holders=1)
    other = {"a": "b", "b": "a"}[holder]
    commands = plan(
        {pinned.key: pinned},
        [worker(holder, held("bot")), worker(other, held("bot", pinned=True))],
        version=1,
        num_holders=1,
    )
    pins = {command.worker_id: command.action for command in commands}
    assert pins == {
        holder: Pin(pinned.key, pinned.current.digest, PinTier.SLOT),
        other: Pin(pinned.key, pinned.current.digest, PinTier.NONE),
    }


def test_k_holders_get_each_adapter():
    workers = [worker(f"w{number}") for number in range(5)]
    commands = plan({BOT.key: BOT}, workers, version=1, num_holders=3)
    assert len({command.worker_id for command in commands}) == 3


def test_no_adapter_goes_to_a_worker_that_is_cordoned_lost_or_cannot_serve_it():
    unfit = [
        worker("cordoned", state=WorkerState.CORDONED),
        worker("lost", state=WorkerState.LOST),
        worker("other-base", base_model="qwen"),
        worker("low-rank", capacity={"max_lora_rank": 4}),
    ]
    assert planned([BOT], *unfit, num_holders=9) == []


def test_a_draining_worker_is_told_and_its_adapters_go_elsewhere():
    draining = worker("d", held("bot"), state=WorkerState.DRAINING)
    assert planned([BOT], draining, worker("w")) == [Drain(), Load(BOT.key, BOT.current)]


def test_a_lost_worker_gets_no_command():
    assert planned([], worker("w", held("deleted"), state=WorkerState.LOST)) == []
