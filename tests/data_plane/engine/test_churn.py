"""Churn: everything at once, and every answer checked against the revision on its receipt."""

import random

import pytest

from data_plane.adapters.revision import ReloadPolicy, Tier
from data_plane.engine.assemble import EnginePolicy
from data_plane.engine.events import Evict, Finished, Load, Pin, Reload, Started
from data_plane.errors import AdapterRefused, AdapterUnreadable, WorkerError
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import Bench, Clock, oracle, source


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_is_its_receipts_oracle_under_reloads_evictions_cancels_and_failures(seed):
    rng = random.Random(seed)
    bench = Bench(
        num_blocks=40, max_loras=2, max_cpu_loras=3, automatic=False, clock=Clock(tick_s=0.0005), num_pages=6
    )
    names = [f"adapter{number}" for number in range(8)]
    for number in range(8):
        bench.reader.ranks[source(f"adapter{number}").revision.digest] = rng.choice([8, 16])
    current = dict.fromkeys(names, 1)
    asked: dict[str, tuple[tuple[int, ...], SamplingParams]] = {}
    switched: set[str] = set()  # names reloaded at once: their running requests mix revisions
    for number in range(500):
        name = rng.choice(names)
        adapter = None if rng.random() < 0.1 else source(name, current[name])
        shared = tuple(range(rng.randrange(2, 12)))
        prompt = shared + tuple(rng.randrange(256) for _ in range(rng.randrange(1, 8)))
        sampling = SamplingParams(temperature=0, max_tokens=rng.randrange(1, 12))
        request_id = str(number)
        try:
            bench.add(request_id, prompt, adapter, sampling, tenant=rng.choice("abc"))
            asked[request_id] = (prompt, sampling)
        except WorkerError:
            bench.clock.now += 1.0  # out of the back-off
        for _ in range(rng.randrange(4)):
            _disturb(bench, rng, names, current, switched)
            bench.step()
            bench.engine.check()
    bench.reads.automatic = bench.copies.automatic = True
    bench.reads.run()
    bench.copies.run()
    bench.run()
    bench.engine.check()

    finished = 0
    for request_id, (prompt, sampling) in asked.items():
        events = bench.events[request_id]
        if not isinstance(events[-1], Finished):
            continue
        (started,) = [event for event in events if isinstance(event, Started)]
        if started.revision is None or started.revision.name not in switched:
            digest = started.revision.digest if started.revision else None
            assert bench.tokens(request_id) == oracle(digest, prompt, sampling), request_id
        finished += 1
    assert finished > 300
    for held in bench.held().values():
        assert held.leases == 0


def _disturb(
    bench: Bench, rng: random.Random, names: list[str], current: dict[str, int], switched: set[str]
) -> None:
    name = rng.choice(names)
    digest = source(name, current[name]).revision.digest
    dice = rng.random()
    if dice < 0.06:
        policy = rng.choice([ReloadPolicy.FINISH_RUNNING, ReloadPolicy.DRAIN])
        if name == "adapter0":
            policy = ReloadPolicy.IMMEDIATE
            switched.add(name)
        number = current[name] + rng.randrange(2)
        new = source(name, number)
        if rng.random() < 0.2:
            bench.reader.failing[new.revision.digest] = AdapterRefused("broken")
        else:
            bench.reader.failing.pop(new.revision.digest, None)
            current[name] = number
        bench.engine.command(Reload(new, policy))
    elif dice < 0.12:
        owner = rng.choice([None, ("acme", name)])
        bench.engine.command(Evict(digest, cancel_running=rng.random() < 0.3, owner=owner))
    elif dice < 0.15:
        bench.engine.command(Load(source(name, current[name]), into_slot=rng.random() < 0.5))
    elif dice < 0.17:
        bench.engine.command(Pin(digest, rng.choice([Tier.CPU, Tier.SLOT, None])))
    elif dice < 0.22:
        bench.engine.cancel(str(rng.randrange(500)))
    elif dice < 0.25:
        bench.reader.failing[digest] = AdapterUnreadable("timeout")
    elif dice < 0.4:
        bench.reader.failing.pop(digest, None)
    if rng.random() < 0.7:
        bench.reads.run()
    if rng.random() < 0.7:
        bench.copies.run()


def test_an_adapter_in_constant_use_gives_its_slot_up_after_its_turn():
    turn_steps, max_tokens = 8, 12
    bench = Bench(max_loras=1, automatic=True, policy=EnginePolicy(turn_steps=turn_steps))
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    for step in range(60):
        if step % 3 == 0:
            bench.add(f"hot {step}", adapter=source("hot"), sampling=sampling)
        if step == 20:
            bench.add("cold", adapter=source("cold"), sampling=sampling)
        for event in bench.step():
            if isinstance(event, Started) and event.request_id == "cold":
                assert step - 20 <= max_tokens + 4
    assert bench.started("cold")
    bench.run()
    assert all(bench.finished(name) for name in bench.events)


@pytest.mark.parametrize("arrival", range(12))
def test_an_adapter_whose_turn_is_over_leaves_at_once_when_nobody_uses_it(arrival):
    bench = Bench(max_loras=1, max_num_seqs=1, policy=EnginePolicy(turn_steps=1))
    for number in range(3):
        bench.add(f"a{number}", adapter=source("a"))
    bench.step(arrival)
    bench.add("b", adapter=source("b"))
    bench.run()  # which fails when the engine would sleep with work to do
    assert list(bench.events)[-1] != "b"


@pytest.mark.parametrize("slow_reads", [False, True])
def test_with_64_adapters_on_4_slots_every_request_starts_within_a_bound(slow_reads):
    turn_steps, max_tokens = 8, 12
    rng = random.Random(1)
    bench = Bench(
        num_blocks=400,
        max_loras=4,
        max_cpu_loras=8,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        automatic=not slow_reads,
        policy=EnginePolicy(turn_steps=turn_steps),
    )
    adapters = [source(f"adapter{number}") for number in range(64)]
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    arrived: dict[str, int] = {}
    waits: dict[str, int] = {}
    for step in range(3000):
        if step < 1500:
            # The hot adapters would hold their slots for ever if nobody had to give way.
            adapter = adapters[rng.randrange(4) if rng.random() < 0.6 else rng.randrange(64)]
            bench.add(str(step), (1, 2, 3), adapter, sampling, tenant="one")
            arrived[str(step)] = step
        if slow_reads and step % 3 == 0:
            bench.reads.run()
            bench.copies.run()
        for event in bench.step():
            if isinstance(event, Started):
                waits[event.request_id] = step - arrived[event.request_id]
    assert waits.keys() == arrived.keys()
    rotation = (64 / 4) * (turn_steps + max_tokens + 8)
    assert max(waits.values()) <= 2 * rotation
    print(f"worst wait {max(waits.values())} steps, mean {sum(waits.values()) / len(waits):.0f}")
