"""Rendezvous hashing against its two promises: balance, and little movement."""

from collections import Counter

from control_plane.placement.rendezvous import ranked

WORKERS = [f"worker-{number}" for number in range(10)]
KEYS = [f"acme/bot-{number}" for number in range(2000)]


def test_keys_spread_evenly():
    load = Counter(ranked(key, WORKERS)[0] for key in KEYS)
    assert set(load) == set(WORKERS)
    assert max(load.values()) < 1.4 * len(KEYS) / len(WORKERS)


def test_a_worker_that_leaves_moves_only_its_own_keys():
    remaining = [worker for worker in WORKERS if worker != "worker-3"]
    for key in KEYS:
        before = ranked(key, WORKERS)
        assert ranked(key, remaining) == [worker for worker in before if worker != "worker-3"]


def test_the_order_does_not_depend_on_how_workers_are_listed():
    assert ranked("acme/bot", WORKERS) == ranked("acme/bot", reversed(WORKERS))
