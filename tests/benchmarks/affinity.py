"""Loads that routing causes: ours against least-loaded, on one Zipf trace. Values only, no processes.

Each worker keeps the adapters used last (a CPU cache of CACHED, of which SLOTS are in slots); a
request occupies its worker for DURATION arrivals. A load is a request whose adapter is not cached.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from control_plane.placement.route import Wanted, route
from control_plane.registry.types import AdapterKey
from control_plane.workers.types import Capacity, HeldAdapter, Tier, Worker, WorkerStatus

NUM_WORKERS, NUM_ADAPTERS, NUM_REQUESTS = 16, 1000, 6000
SLOTS, CACHED, DURATION, BATCH = 8, 64, 96, 16
EXPONENT = 1.0

Choose = Callable[[str, Sequence[Worker]], Worker]


def loads_per_1000(choose: Choose) -> float:
    """Loads per 1,000 requests after a warm-up of a third of the trace."""
    draw = random.Random(7)
    weights = list(accumulate(1 / rank**EXPONENT for rank in range(1, NUM_ADAPTERS + 1)))
    fleet = {f"w{number}": _Caching(f"w{number}") for number in range(NUM_WORKERS)}
    running: deque[str] = deque()
    loads = counted = 0
    for number in range(NUM_REQUESTS):
        if len(running) == DURATION:
            fleet[running.popleft()].running -= 1
        digest = f"d{draw.choices(range(NUM_ADAPTERS), cum_weights=weights)[0]}"
        chosen = fleet[choose(digest, [worker.seen() for worker in fleet.values()]).worker_id]
        loaded = chosen.take(digest)
        running.append(chosen.worker_id)
        if number >= NUM_REQUESTS // 3:
            loads, counted = loads + loaded, counted + 1
    return 1000 * loads / counted


def by_residency(digest: str, workers: Sequence[Worker]) -> Worker:
    """The control plane's own choice."""
    return route(Wanted("llama", digest, 8), workers)


def least_loaded(digest: str, workers: Sequence[Worker]) -> Worker:
    """What a load balancer does; equal ones in turn."""
    return min(workers, key=lambda worker: (worker.status.running_requests, hash((digest, worker.worker_id))))


class _Caching:
    """One worker's caches, oldest first."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.running = 0
        self._cached: OrderedDict[str, None] = OrderedDict()
        self._worker = Worker(
            worker_id=worker_id,
            instance_id=worker_id,
            address="127.0.0.1:1",
            base_model="llama",
            base_model_digest="sha256:base",
            capacity=Capacity(max_loras=SLOTS, max_lora_rank=64, max_num_seqs=BATCH),
        )

    def take(self, digest: str) -> bool:
        """Run a request; whether its adapter had to be loaded."""
        loaded = digest not in self._cached
        self._cached[digest] = None
        self._cached.move_to_end(digest)
        if len(self._cached) > CACHED:
            self._cached.popitem(last=False)
        self.running += 1
        self._worker = replace(self._worker, status=WorkerStatus(adapters=self._held()))
        return loaded

    def seen(self) -> Worker:
        """What the control plane knows of it."""
        status = replace(self._worker.status, running_requests=self.running)
        return replace(self._worker, status=status)

    def _held(self) -> tuple[HeldAdapter, ...]:
        newest = list(self._cached)[-SLOTS:]
        return tuple(
            HeldAdapter(
                key=AdapterKey("acme", digest),
                revision=1,
                digest=digest,
                rank=8,
                tier=Tier.SLOT if digest in newest else Tier.CPU,
            )
            for digest in self._cached
        )
