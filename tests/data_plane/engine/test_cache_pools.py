"""Pools of tenants in a running engine: a flood of one pool costs another neither slots nor progress."""

from data_plane.adapters.shares import CachePool
from data_plane.engine.assemble import EnginePolicy
from data_plane.engine.events import Finished, Started
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import GREEDY, Bench, oracle, source

TRIAL = CachePool("trial", ("guest",), max_share=0.5)
GOLD = CachePool("gold", ("acme",), reserved_share=0.5)
LONG = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def bench_of(*pools: CachePool, **options: object) -> Bench:
    return Bench(max_loras=2, cache_pools=pools, policy=EnginePolicy(turn_steps=2), **options)


def test_a_pool_at_its_maximum_waits_for_its_own_while_a_slot_is_free():
    bench = bench_of(TRIAL)
    for number in range(4):
        bench.add(str(number), (1, 2), source(f"g{number}", tenant="guest"), LONG, tenant="guest")
    bench.run()
    assert bench.engine.status().max_adapters_in_step == 1
    for number in range(4):
        digest = source(f"g{number}", tenant="guest").revision.digest
        assert bench.tokens(str(number)) == oracle(digest, (1, 2), LONG)
    bench.engine.check()


def test_a_reserve_is_free_at_once_however_many_others_wait():
    bench = bench_of(GOLD)
    for number in range(20):
        bench.add(f"flood {number}", (1,), source(f"o{number}", tenant="other"), LONG, tenant="other")
    bench.step(3)
    bench.add("gold", (1, 2), source("bot"), GREEDY, tenant="acme")
    for _ in range(4):
        bench.step()
    assert bench.started("gold"), "it found its reserved slot without waiting for anybody's end"
    bench.run()
    assert all(isinstance(events[-1], Finished) for events in bench.events.values())


def test_a_pool_at_its_maximum_neither_drains_nor_hides_the_others():
    bench = bench_of(TRIAL)
    for number in range(12):
        bench.add(f"guest {number}", (1,), source(f"g{number}", tenant="guest"), LONG, tenant="guest")
    waits: list[int] = []
    for step in range(150):
        if step % 10 == 0:
            name = f"other {step}"
            bench.add(name, (1,), source("hot", tenant="other"), GREEDY, tenant="other")
            since = step
        for event in bench.step():
            if isinstance(event, Started) and event.request_id.startswith("other"):
                waits.append(step - since)
    assert len(waits) == 15
    assert max(waits) <= 3, "guests wait for guests, and nobody else for them"
    bench.run()
    bench.engine.check()


def test_a_pools_adapters_leave_the_cpu_cache_before_those_of_others():
    bench = bench_of(TRIAL, max_cpu_loras=4)
    bench.add("other", (1,), source("bot", tenant="other"), GREEDY, tenant="other")
    bench.run()
    for number in range(6):
        bench.add(str(number), (1,), source(f"g{number}", tenant="guest"), GREEDY, tenant="guest")
    bench.run()
    assert source("bot", tenant="other").revision.digest in bench.held()
    assert len(bench.held()) == 3, "guests have half of four places"
