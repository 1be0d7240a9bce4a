"""Loads that routing causes: ours against least-loaded, on Zipf traces. Values only, no processes.

Each worker keeps the adapters used last (a CPU cache of CACHED, of which SLOTS are in slots); a
request occupies its worker for DURATION arrivals. A load is a request whose adapter is not cached.
No routing can do better than one cache of all workers' sizes together and no queue to heed: that
bound is printed beside each fleet. Four workers have fewer places than there are requests at once,
and caches for a quarter of the adapters: there even the bound is far above the goal of the others, so
that fleet has figures of its own, without a goal.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import fmean

from control_plane.placement.rendezvous import score
from control_plane.placement.route import Wanted, route
from control_plane.registry.types import AdapterKey
from control_plane.workers.holdings import HeldAdapter, Holdings, Tier
from control_plane.workers.types import Capacity, Worker, WorkerStatus

NUM_ADAPTERS, NUM_REQUESTS = 1000, 6000
SLOTS, CACHED, DURATION, BATCH = 8, 64, 96, 16
EXPONENT = 1.0
FLEETS = (4, 8, 16, 32)  # workers
SMALL = 4  # too small for the goal
SEEDS = (7, 1, 2)
FIGURE_FLEETS = (8, 16)  # a batch place and half a cache place for everybody, and twice that

Choose = Callable[[str, Sequence[Worker]], Worker]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trace came to."""

    loads: float  # per 1,000 requests
    queued: float  # requests per 1,000 that found a full batch


def measure() -> dict[str, float]:
    """Loads of ours / of least-loaded routing, mean over seeds: the worse of FIGURE_FLEETS, and SMALL."""
    ratios, bounds = {}, {}
    for num_workers in FLEETS:
        ours, plain = (
            [replay(choose, num_workers, seed) for seed in SEEDS] for choose in (by_residency, least_loaded)
        )
        each = [one.loads / other.loads for one, other in zip(ours, plain, strict=True)]
        loads = fmean(one.loads for one in plain)
        ratios[num_workers] = fmean(each)
        bounds[num_workers] = fmean(bound_per_1000(num_workers, seed) for seed in SEEDS) / loads
        print(
            f"affinity, {num_workers:2} workers: {ratios[num_workers]:.3f} "
            f"(seeds {', '.join(f'{ratio:.3f}' for ratio in each)}; bound {bounds[num_workers]:.3f}); "
            f"queued per 1,000: {fmean(one.queued for one in ours):.0f} against "
            f"{fmean(one.queued for one in plain):.0f}"
        )
    return {
        "affinity_load_ratio": max(ratios[num_workers] for num_workers in FIGURE_FLEETS),
        "affinity_load_ratio_w4": ratios[SMALL],
        "affinity_bound_w4": bounds[SMALL],
    }


def replay(choose: Choose, num_workers: int, seed: int) -> Outcome:
    """Route one trace; its first third warms the caches and is not counted."""
    fleet = {f"w{number}": _Caching(f"w{number}") for number in range(num_workers)}
    running: deque[str] = deque()
    loads = queued = counted = 0
    for now, digest in enumerate(_trace(seed)):
        if len(running) == DURATION:
            fleet[running.popleft()].finish()
        chosen = fleet[choose(digest, [caching.worker for caching in fleet.values()]).worker_id]
        loaded = chosen.take(digest, now)
        running.append(chosen.worker.worker_id)
        if now >= NUM_REQUESTS // 3:
            loads, queued, counted = (
                loads + loaded,
                queued + (chosen.worker.status.running_requests > BATCH),
                counted + 1,
            )
    return Outcome(1000 * loads / counted, 1000 * queued / counted)


def bound_per_1000(num_workers: int, seed: int) -> float:
    """Loads of one least-recently-used cache as large as all together."""
    cached: OrderedDict[str, None] = OrderedDict()
    loaded = []
    for digest in _trace(seed):
        loaded.append(digest not in cached)
        cached[digest] = None
        cached.move_to_end(digest)
        if len(cached) > num_workers * CACHED:
            cached.popitem(last=False)
    return 1000 * fmean(loaded[NUM_REQUESTS // 3 :])


def by_residency(digest: str, workers: Sequence[Worker]) -> Worker:
    """The control plane's own choice."""
    return route(Wanted("llama", digest, 8, 1), workers)


def least_loaded(digest: str, workers: Sequence[Worker]) -> Worker:
    """What a load balancer does; equal ones in turn."""
    return min(workers, key=lambda worker: (worker.status.running_requests, score(worker.worker_id, digest)))


def _trace(seed: int) -> list[str]:
    draw = random.Random(seed)
    weights = list(accumulate(1 / rank**EXPONENT for rank in range(1, NUM_ADAPTERS + 1)))
    numbers = draw.choices(range(NUM_ADAPTERS), cum_weights=weights, k=NUM_REQUESTS)
    return [f"d{number}" for number in numbers]


class _Caching:
    """One worker's caches, oldest first; `worker` is what the control plane knows of it."""

    def __init__(self, worker_id: str, size: int = CACHED) -> None:
        self._size = size
        self._cached: OrderedDict[str, int] = OrderedDict()  # digest → when it was used last
        self.worker = Worker(
            worker_id=worker_id,
            instance_id=worker_id,
            address="127.0.0.1:1",
            base_model="llama",
            base_model_digest="sha256:base",
            capacity=Capacity(max_loras=SLOTS, max_lora_rank=64, max_num_seqs=BATCH, cpu_bytes=size),
        )

    def take(self, digest: str, now: int) -> bool:
        """Run a request; whether its adapter had to be loaded. An arrival is a second."""
        loaded = digest not in self._cached
        self._cached[digest] = now
        self._cached.move_to_end(digest)
        if len(self._cached) > self._size:
            self._cached.popitem(last=False)
        status = WorkerStatus(
            holdings=Holdings(self._held(now)),
            running_requests=self.worker.status.running_requests + 1,
            cpu_bytes_used=len(self._cached),
        )
        self.worker = replace(self.worker, status=status)
        return loaded

    def finish(self) -> None:
        """End a request."""
        status = self.worker.status
        status = replace(status, running_requests=status.running_requests - 1)
        self.worker = replace(self.worker, status=status)

    def _held(self, now: int) -> tuple[HeldAdapter, ...]:
        in_slots = len(self._cached) - SLOTS
        return tuple(
            HeldAdapter(
                key=AdapterKey("acme", digest),
                revision=1,
                digest=digest,
                rank=8,
                tier=Tier.SLOT if place >= in_slots else Tier.CPU,
                used_s=used,
            )
            for place, (digest, used) in enumerate(self._cached.items())
        )
