import pytest

from data_plane.adapters.revision import ReloadPolicy, Tier
from data_plane.engine.events import Evict, Load, Pin, Reload
from data_plane.errors import AdapterRefused, AdapterUnknown, Overloaded, RequestCancelled
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import GREEDY, PAGE_BYTES, Bench, Clock, oracle, source

OLD, NEW, OTHER = source("support", 1), source("support", 2), source("legal")
OLD_DIGEST, NEW_DIGEST = OLD.revision.digest, NEW.revision.digest
LONG = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
ALL = list(ReloadPolicy)


def running(bench: Bench, name: str = "running", **options: object) -> None:
    bench.add(name, (1, 2, 3), OLD, LONG, **options)  # type: ignore[arg-type]
    while not bench.tokens(name):
        bench.step()


def test_finish_running_ends_the_old_on_the_old_and_begins_the_new_on_the_new():
    bench = Bench()
    running(bench)
    future = bench.engine.command(Reload(NEW, ReloadPolicy.FINISH_RUNNING))
    while not future.done():
        bench.step()
    assert len(bench.tokens("running")) < 24
    bench.add("next", (1, 2, 3), NEW, LONG)
    bench.run()
    assert bench.tokens("running") == oracle(OLD_DIGEST, (1, 2, 3), LONG)
    assert bench.tokens("next") == oracle(NEW_DIGEST, (1, 2, 3), LONG)
    assert bench.started("next").revision == NEW.revision
    assert bench.held().keys() == {NEW_DIGEST}, "the old revision left with its last lease"
    assert bench.reader.reads[NEW_DIGEST] == 1
    bench.engine.check()


def test_drain_lets_new_requests_wait_until_the_running_ones_ended():
    bench = Bench(max_loras=2)
    running(bench)
    future = bench.engine.command(Reload(NEW, ReloadPolicy.DRAIN))
    bench.step(4)
    bench.add("next", (1, 2, 3), NEW, LONG)
    while not bench.tokens("next"):
        bench.step()
    assert len(bench.tokens("running")) == 24, "the new began before the old had ended"
    bench.run()
    assert future.done()
    assert bench.tokens("next") == oracle(NEW_DIGEST, (1, 2, 3), LONG)
    assert bench.held().keys() == {NEW_DIGEST}
    assert bench.reader.reads[NEW_DIGEST] == 1


def test_immediate_goes_on_with_the_new_weights_in_the_same_slot():
    bench = Bench(max_loras=1)
    running(bench)
    future = bench.engine.command(Reload(NEW, ReloadPolicy.IMMEDIATE))
    while not future.done():
        bench.step()
    before = len(bench.tokens("running"))
    slot = bench.runner.plans[-1].chunks[0].slot
    assert bench.held()[NEW_DIGEST].leases == 1
    bench.run()
    plans = [plan for plan in bench.runner.plans if plan.chunks[0].start > 0]
    assert {chunk.slot for plan in plans for chunk in plan.chunks} == {slot}
    old = oracle(OLD_DIGEST, (1, 2, 3), LONG)
    assert bench.tokens("running")[: before - 1] == old[: before - 1]
    assert bench.tokens("running") != old
    assert len(bench.tokens("running")) == 24
    assert bench.reader.reads[NEW_DIGEST] == 1
    bench.engine.check()


def test_immediate_never_offers_mixed_blocks_to_the_prefix_cache():
    bench = Bench(max_loras=1)
    running(bench)
    bench.engine.command(Reload(NEW, ReloadPolicy.IMMEDIATE))
    bench.run()
    said = tuple(bench.tokens("running"))
    for adapter in (NEW, OLD):
        prompt = (1, 2, 3, *said)
        name = f"after {adapter.revision.number}"
        bench.add(name, prompt, adapter)
        bench.run()
        assert bench.tokens(name) == oracle(adapter.revision.digest, prompt, GREEDY)


def test_immediate_moves_waiting_requests_to_the_new_revision():
    bench = Bench(max_num_seqs=1, max_num_batched_tokens=16)
    running(bench)
    bench.add("waiting", (4, 5), OLD)
    bench.engine.command(Reload(NEW, ReloadPolicy.IMMEDIATE))
    bench.run()
    assert bench.started("waiting").revision == NEW.revision
    assert bench.tokens("waiting") == oracle(NEW_DIGEST, (4, 5), GREEDY)


def test_immediate_without_fresh_pages_computes_running_requests_again():
    bench = Bench(max_loras=1, num_pages=1)
    running(bench)
    said = bench.tokens("running")
    bench.engine.command(Reload(NEW, ReloadPolicy.IMMEDIATE))
    bench.run()
    tokens = bench.tokens("running")
    assert tokens[: len(said)] == said
    assert len(tokens) == 24
    split = next(
        i
        for i, pair in enumerate(zip(tokens, oracle(OLD_DIGEST, (1, 2, 3), LONG), strict=True))
        if len(set(pair)) > 1
    )
    rest = SamplingParams(temperature=0, max_tokens=24 - split, ignore_eos=True)
    assert tokens[split:] == oracle(NEW_DIGEST, (1, 2, 3, *tokens[:split]), rest)
    assert len([e for e in bench.events["running"] if type(e).__name__ == "Started"]) == 1
    bench.engine.check()


def test_immediate_leaves_another_tenants_adapter_with_the_same_weights_alone():
    bench = Bench()
    shared = source("copycat", tenant="rival", digest=OLD_DIGEST)
    running(bench)
    bench.add("rival", (1, 2, 3), shared, LONG)
    bench.step()
    bench.engine.command(Reload(NEW, ReloadPolicy.IMMEDIATE))
    bench.run()
    assert bench.tokens("rival") == oracle(OLD_DIGEST, (1, 2, 3), LONG)
    assert bench.tokens("running") != bench.tokens("rival")
    assert bench.held().keys() == {OLD_DIGEST, NEW_DIGEST}


@pytest.mark.parametrize("policy", ALL)
def test_an_idle_adapter_is_replaced_without_waiting_for_the_next_request(policy):
    bench = Bench()
    bench.engine.command(Load(OLD))
    bench.run()
    bench.engine.command(Reload(NEW, policy))
    bench.run()  # which fails when the engine would sleep with the old still there
    assert bench.held().keys() == {NEW_DIGEST}


@pytest.mark.parametrize("policy", ALL)
def test_a_failed_reload_keeps_the_old_and_fails_nobody(policy):
    bench = Bench()
    running(bench)
    bench.reader.failing[NEW_DIGEST] = AdapterRefused("truncated")
    future = bench.engine.command(Reload(NEW, policy))
    bench.run()
    with pytest.raises(AdapterRefused, match="truncated"):
        future.result()
    assert bench.tokens("running") == oracle(OLD_DIGEST, (1, 2, 3), LONG)
    bench.add("again", adapter=OLD)
    bench.run()
    assert bench.reader.reads == {OLD_DIGEST: 1, NEW_DIGEST: 1}


@pytest.mark.parametrize("policy", ALL)
def test_reloading_the_digest_that_is_held_reads_it_again_once(policy):
    bench = Bench()
    running(bench)
    future = bench.engine.command(Reload(OLD, policy))
    bench.run()
    assert future.done()
    assert bench.reader.reads[OLD_DIGEST] == 2
    assert bench.tokens("running") == oracle(OLD_DIGEST, (1, 2, 3), LONG)


@pytest.mark.parametrize("policy", ALL)
def test_rolling_back_while_the_old_still_runs_keeps_it(policy):
    bench = Bench()
    running(bench)
    for adapter in (NEW, OLD):
        future = bench.engine.command(
            Reload(adapter, policy if adapter is OLD else ReloadPolicy.FINISH_RUNNING)
        )
        while not future.done():
            bench.step()
    bench.run()
    assert bench.tokens("running") == oracle(OLD_DIGEST, (1, 2, 3), LONG)
    assert bench.held().keys() == {OLD_DIGEST}


def test_a_load_command_reads_ahead_so_that_the_request_finds_a_slot():
    bench = Bench()
    future = bench.engine.command(Load(OLD, into_slot=True))
    bench.run()
    assert future.result().size_bytes == 1000 + PAGE_BYTES
    bench.clock.now += 1
    bench.add("a", adapter=OLD)
    bench.run()
    assert bench.started("a").tier is Tier.SLOT
    assert bench.reader.reads[OLD_DIGEST] == 1


def test_a_request_joins_the_load_that_is_under_way_and_makes_it_urgent():
    bench = Bench(automatic=False)
    bench.engine.command(Load(OLD))
    bench.step()
    bench.add("a", adapter=OLD)
    bench.step()
    assert bench.reads.hurried == [OLD_DIGEST]
    assert len(bench.reads.jobs) == 1


def test_only_loads_that_a_request_waits_for_are_urgent():
    bench = Bench(automatic=False)
    bench.engine.command(Load(OLD))
    bench.engine.command(Load(OTHER, into_slot=True))
    bench.add("a", adapter=NEW)
    bench.step()
    assert len(bench.reads.jobs) == 3
    assert bench.reads.urgent == [NEW_DIGEST]


def test_loads_of_one_digest_are_one_read_however_many_want_it():
    bench = Bench(automatic=False)
    futures = [bench.engine.command(Load(OLD, into_slot=into_slot)) for into_slot in (False, True, False)]
    bench.add("a", adapter=OLD)
    bench.add("rival", adapter=source("copycat", tenant="rival", digest=OLD_DIGEST))
    bench.step(3)
    assert len(bench.reads.jobs) == 1
    bench.reads.automatic = bench.copies.automatic = True
    bench.reads.run()
    bench.run()
    assert bench.reader.reads == {OLD_DIGEST: 1}
    assert all(future.exception() is None for future in futures)
    assert bench.tokens("a") == bench.tokens("rival") == oracle(OLD_DIGEST, (1, 2, 3), GREEDY)


def test_a_load_into_a_slot_takes_no_slot_that_is_in_use():
    bench = Bench(max_loras=1)
    running(bench)
    future = bench.engine.command(Load(OTHER, into_slot=True))
    bench.step(4)
    with pytest.raises(Overloaded):
        future.result()
    assert bench.held()[OTHER.revision.digest].tier is Tier.CPU


def test_eviction_waits_for_leases_and_gives_the_bytes_of_both_tiers_back():
    bench = Bench(clock=Clock(tick_s=0.001))
    running(bench)
    bench.add("base", sampling=LONG)
    future = bench.engine.command(Evict(OLD_DIGEST))
    bench.step(3)
    assert not future.done()
    bench.run()
    assert future.result().size_bytes == 1000 + PAGE_BYTES
    assert len(bench.tokens("running")) == 24
    status = bench.engine.status()
    assert (status.adapters, status.slot_bytes_used, status.cpu_bytes_used) == ((), 0, 0)
    bench.add("again", adapter=OLD)
    bench.run()
    assert bench.started("again").tier is Tier.SOURCE
    assert bench.reader.reads[OLD_DIGEST] == 2


def test_eviction_can_cancel_those_who_use_the_adapter():
    bench = Bench()
    running(bench)
    future = bench.engine.command(Evict(OLD_DIGEST, cancel_running=True))
    bench.step()
    assert isinstance(bench.error("running"), RequestCancelled)
    assert future.done()


def test_requests_that_arrive_during_an_eviction_load_the_adapter_again():
    bench = Bench()
    running(bench)
    bench.engine.command(Evict(OLD_DIGEST))
    bench.step()
    bench.add("late", (4, 5), OLD)
    bench.run()
    assert bench.tokens("late") == oracle(OLD_DIGEST, (4, 5), GREEDY)
    assert bench.reader.reads[OLD_DIGEST] == 2


def test_evicting_what_is_not_held_frees_nothing_and_succeeds():
    bench = Bench()
    future = bench.engine.command(Evict(OLD_DIGEST))
    bench.step()
    assert future.result().size_bytes == 0


def test_a_pinned_adapter_keeps_its_slot_when_others_need_one():
    bench = Bench(max_loras=2)
    bench.engine.command(Load(OLD))
    bench.run()
    bench.engine.command(Pin(OLD_DIGEST, Tier.SLOT))
    bench.run()
    for number in range(4):
        bench.add(str(number), adapter=source(f"other{number}"))
    bench.run()
    held = bench.held()[OLD_DIGEST]
    assert (held.tier, held.pinned) == (Tier.SLOT, True)
    assert bench.reader.reads[OLD_DIGEST] == 1


def test_a_pin_that_leaves_no_slot_for_others_is_refused():
    bench = Bench(max_loras=1)
    bench.engine.command(Load(OLD))
    bench.run()
    future = bench.engine.command(Pin(OLD_DIGEST, Tier.SLOT))
    bench.run()
    with pytest.raises(Overloaded):
        future.result()


def test_pinning_what_is_not_held_is_refused():
    bench = Bench()
    future = bench.engine.command(Pin(OLD_DIGEST, Tier.CPU))
    bench.step()
    with pytest.raises(AdapterUnknown):
        future.result()


def test_a_copy_that_fails_ends_the_command_and_the_requests_but_not_the_engine():
    bench = Bench()
    write, bench.pool.write = bench.pool.write, None  # type: ignore[method-assign, assignment]
    future = bench.engine.command(Load(OLD, into_slot=True))
    bench.add("a", adapter=OTHER)
    bench.run()
    assert future.exception() is not None
    assert "rank pool" in str(bench.error("a"))
    bench.pool.write = write  # type: ignore[method-assign]
    bench.add("b", adapter=OTHER)
    bench.run()
    assert bench.tokens("b") == oracle(OTHER.revision.digest, (1, 2, 3), GREEDY)
    bench.engine.check()


RIVAL = source("copycat", tenant="rival", digest=OLD_DIGEST)


@pytest.mark.parametrize("cancel_running", [False, True])
def test_eviction_of_one_owner_leaves_the_other_owner_of_the_same_weights_alone(cancel_running):
    bench = Bench()
    running(bench)
    bench.add("rival", (1, 2, 3), RIVAL, LONG)
    bench.step()
    future = bench.engine.command(
        Evict(OLD_DIGEST, cancel_running=cancel_running, owner=("rival", "copycat"))
    )
    bench.run()
    assert bench.tokens("running") == oracle(OLD_DIGEST, (1, 2, 3), LONG)
    if cancel_running:
        assert isinstance(bench.error("rival"), RequestCancelled)
    else:
        assert bench.tokens("rival") == oracle(OLD_DIGEST, (1, 2, 3), LONG)
    assert future.result().size_bytes == 0
    assert bench.held()[OLD_DIGEST].revision == OLD.revision
    last = bench.engine.command(Evict(OLD_DIGEST, owner=("acme", "support")))
    bench.run()
    assert last.result().size_bytes == 1000 + PAGE_BYTES, "the last owner takes the weights along"
    bench.engine.check()


@pytest.mark.parametrize("max_loras", [2, 3])
@pytest.mark.parametrize("policy", ALL)
def test_a_slot_pin_passes_to_the_new_weights(policy, max_loras):
    bench = Bench(max_loras=max_loras)
    running(bench)
    bench.engine.command(Pin(OLD_DIGEST, Tier.SLOT))
    bench.add("other", (4, 5), OTHER, LONG)
    bench.step()
    bench.engine.command(Reload(NEW, policy))
    bench.run()
    held = bench.held()[NEW_DIGEST]
    assert (held.tier, held.pinned) == (Tier.SLOT, True)
    assert OLD_DIGEST not in bench.held()
    assert bench.reader.reads[NEW_DIGEST] == 1
    bench.engine.check()


def test_a_pin_that_waits_for_its_slot_can_be_taken_back():
    bench = Bench(max_loras=2)
    running(bench)
    bench.engine.command(Pin(OLD_DIGEST, Tier.SLOT))
    bench.add("other", (4, 5), OTHER, LONG)
    bench.step()
    bench.engine.command(Reload(NEW))
    bench.step(2)
    bench.engine.command(Pin(NEW_DIGEST, None))
    bench.run()
    assert not bench.held()[NEW_DIGEST].pinned
