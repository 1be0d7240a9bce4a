"""What a worker holds, change by change: equal to the same taken anew, at the cost of the change."""

import math
import random
import time

from control_plane.registry.types import AdapterKey
from control_plane.workers.holdings import HeldAdapter, Holdings, Tier
from tests.control_plane.placement.examples import held

NAMES = [f"bot-{number}" for number in range(5)]


def any_held(rng: random.Random) -> HeldAdapter:
    return held(
        rng.choice(NAMES),
        rng.randint(1, 2),
        tier=rng.choice(list(Tier)),
        idle_s=rng.random() * 100,
        leases=rng.randrange(2),
        pinned=rng.random() < 0.2,
    )


def test_after_any_changes_they_equal_those_made_anew():
    rng, now = random.Random(1), Holdings()
    for step in range(2000):
        changed = {one.digest: one for one in (any_held(rng) for _ in range(rng.randrange(3)))}
        gone = [digest for digest in now.by_digest if rng.random() < 0.2 and digest not in changed]
        now = now.after(changed.values(), gone)
        anew = Holdings(now.by_digest.values())
        assert now == anew
        assert {key: set(map(id, ones)) for key, ones in now.by_key.items()} == {
            key: set(map(id, ones)) for key, ones in anew.by_key.items()
        }
        assert now.num_resident == anew.num_resident
        if step % 3:  # asked for at some times only, so that it is carried over at others
            assert now.unused_since_s == anew.unused_since_s


def test_a_change_leaves_what_was_before_as_it_was():
    before = Holdings([held("a"), held("b")])
    after = before.after([held("c")], ["sha256:a-1"])
    assert set(before.by_digest) == {"sha256:a-1", "sha256:b-1"}
    assert set(after.by_digest) == {"sha256:b-1", "sha256:c-1"}
    assert AdapterKey("acme", "a") in before.by_key
    assert AdapterKey("acme", "a") not in after.by_key


def test_nothing_that_may_leave_was_unused_since_never():
    assert Holdings().unused_since_s == math.inf
    assert Holdings([held("a", leases=1), held("b", pinned=True)]).unused_since_s == math.inf


def test_a_change_costs_about_the_same_among_ten_thousand_as_among_a_hundred():
    few_s, many_s = _change_s(100), _change_s(10_000)
    print(f"one change among 100: {few_s * 1e6:.0f} µs, among 10,000: {many_s * 1e6:.0f} µs")
    assert many_s < 4 * few_s


def _change_s(num_adapters: int) -> float:
    holdings = Holdings(held(f"bot-{number}") for number in range(num_adapters))
    assert holdings.unused_since_s
    changed = [held("bot-7", leases=1)]
    seconds = []
    for _ in range(200):
        began_s = time.perf_counter()
        holdings.after(changed, [])
        seconds.append(time.perf_counter() - began_s)
    return min(seconds)
