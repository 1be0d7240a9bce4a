"""Which worker takes a request: a pure function of what the workers last reported.

Workers that have the revision in memory come first (slot before CPU cache), then the least loaded
of them. Residency is worth less than a free place: a holder with a full batch and a queue longer
than `SPILL_QUEUE` of a batch is passed over while another worker is that much less loaded. When all
are as busy, it is not: the same queue would wait elsewhere, and a load besides.

A request that none is warm for goes to one of the least loaded workers, in bands of `BAND` of a
batch, there to the one whose cache loses least by it: it has room, or what it would evict was idle
longest. So the caches of all workers together behave like one least-recently-used cache.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from control_plane.errors import NoWorker, Refused
from control_plane.placement.plan import room
from control_plane.placement.rendezvous import score
from control_plane.workers.holdings import HeldAdapter, Tier
from control_plane.workers.types import Worker, WorkerState

# A queue of half a batch costs about as much as a cold load of a common adapter (tens of ms).
SPILL_QUEUE = 0.5
# Loads on a Zipf trace, of those of least-loaded routing (8 workers, 1,000 adapters, 512 cached; mean
# of three seeds): no bands 0.32, quarters 0.30, thirds 0.28, halves 0.27, whole batches 0.27. Wider
# ones let more requests wait.
BAND = 1 / 3
NOTHING: Mapping[str, int] = MappingProxyType({})
_WARM = frozenset({Tier.SLOT, Tier.CPU})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs of a worker."""

    base_model: str  # empty: any
    digest: str = ""  # empty: the base model itself
    rank: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An able worker, its load, and what it holds of the revision."""

    worker: Worker
    load: float  # requests per place in the batch: 1 is a full batch with nobody waiting
    held: HeldAdapter | None

    @property
    def is_warm(self) -> bool:
        return self.held is not None and self.held.tier in _WARM


def route(
    wanted: Wanted,
    workers: Iterable[Worker],
    *,
    in_flight: Mapping[str, int] = NOTHING,
    excluded: Collection[str] = (),
) -> Worker:
    """Choose the worker; raise NoWorker when none can take the request now, Refused when
    none ever can.

    `in_flight` are requests that this process sent and the workers' reports may not show yet;
    `excluded` are workers that failed this very request.
    """
    ready = [worker for worker in workers if _is_ready(worker, wanted)]
    _check_rank(ready, wanted)
    able = [
        _Candidate(worker, _load(worker, in_flight), worker.status.held.get(wanted.digest))
        for worker in ready
        if wanted.rank <= worker.capacity.max_lora_rank and worker.worker_id not in excluded
    ]
    if not able:
        raise NoWorker(f"no worker is ready to serve {wanted.base_model or 'the base model'!r}")
    return _choose(wanted, able).worker


def _choose(wanted: Wanted, able: list[_Candidate]) -> _Candidate:
    least = min(candidate.load for candidate in able)
    if not wanted.digest:
        return max(able, key=lambda candidate: _by_load(candidate, wanted))
    limit = max(1.0, least) + SPILL_QUEUE
    near = [candidate for candidate in able if candidate.held is not None and candidate.load < limit]
    warm = [candidate for candidate in near if candidate.is_warm]
    if warm:
        return max(warm, key=lambda candidate: (_in_slot(candidate), *_by_load(candidate, wanted)))
    # On its disk is nearer than at the source.
    return max(near or able, key=lambda candidate: _by_loss(candidate, wanted, least))


def _is_ready(worker: Worker, wanted: Wanted) -> bool:
    return worker.state is WorkerState.READY and wanted.base_model in ("", worker.base_model)


def _check_rank(ready: Collection[Worker], wanted: Wanted) -> None:
    """Trying again would not help, so this is no NoWorker."""
    largest = max((worker.capacity.max_lora_rank for worker in ready), default=wanted.rank)
    if wanted.rank > largest:
        raise Refused(f"the adapter's rank {wanted.rank} is above max_lora_rank {largest} of every worker")


def _load(worker: Worker, in_flight: Mapping[str, int]) -> float:
    known = worker.status.running_requests + worker.status.waiting_requests
    return max(known, in_flight.get(worker.worker_id, 0)) / max(1, worker.capacity.max_num_seqs)


def _in_slot(candidate: _Candidate) -> bool:
    return candidate.held is not None and candidate.held.tier is Tier.SLOT


def _by_load(candidate: _Candidate, wanted: Wanted) -> tuple[float, int]:
    # The score spreads equal workers by adapter, not by name.
    return -candidate.load, score(candidate.worker.worker_id, wanted.digest)


def _by_loss(candidate: _Candidate, wanted: Wanted, least: float) -> tuple[int, float, bool, float, int]:
    worker = candidate.worker
    band = int((candidate.load - least) / BAND)
    has_slot = worker.status.num_resident < worker.capacity.max_loras
    return (-band, _idle(worker, wanted), has_slot, *_by_load(candidate, wanted))


def _idle(worker: Worker, wanted: Wanted) -> float:
    """Return what grows with the time that nobody wanted what the worker would evict; infinite with room."""
    free = room(worker)
    has_room = free.num_bytes >= wanted.size_bytes and free.places >= 1
    return math.inf if has_room else -worker.status.unused_since_s
