"""Which worker takes a request: a pure function of what the workers last reported.

Workers that hold the revision come first (slot before CPU before the rest), then the least loaded.
Residency is worth less than a free place: a holder whose batch is full and whose queue is longer
than `SPILL_QUEUE` of its batch is passed over while another worker has room.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from control_plane.errors import NoWorker, Refused
from control_plane.placement.rendezvous import score
from control_plane.workers.types import Tier, Worker, WorkerState

# A queue of half a batch costs about as much as a cold load of a common adapter (tens of ms).
SPILL_QUEUE = 0.5
NOTHING: Mapping[str, int] = MappingProxyType({})
_NEARNESS = {Tier.SLOT: 3, Tier.CPU: 2, Tier.DISK: 1, Tier.SOURCE: 0}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs of a worker."""

    base_model: str  # empty: any
    digest: str = ""  # empty: the base model itself
    rank: int = 0


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
        worker
        for worker in ready
        if wanted.rank <= worker.capacity.max_lora_rank and worker.worker_id not in excluded
    ]
    if not able:
        raise NoWorker(f"no worker is ready to serve {wanted.base_model or 'the base model'!r}")
    return max(able, key=lambda worker: _preference(worker, wanted, in_flight.get(worker.worker_id, 0)))


def _is_ready(worker: Worker, wanted: Wanted) -> bool:
    return worker.state is WorkerState.READY and wanted.base_model in ("", worker.base_model)


def _check_rank(ready: Collection[Worker], wanted: Wanted) -> None:
    """Trying again would not help, so this is no NoWorker."""
    largest = max((worker.capacity.max_lora_rank for worker in ready), default=wanted.rank)
    if wanted.rank > largest:
        raise Refused(f"the adapter's rank {wanted.rank} is above max_lora_rank {largest} of every worker")


def _preference(worker: Worker, wanted: Wanted, sent: int) -> tuple[bool, int, float, int]:
    load = _load(worker, sent)
    tie = score(worker.worker_id, wanted.digest)  # spreads equal workers by adapter, not by name
    return (load < 1 + SPILL_QUEUE, _nearness(worker, wanted.digest), -load, tie)


def _load(worker: Worker, sent: int) -> float:
    """Requests per place in the batch: 1 is a full batch with nobody waiting."""
    known = worker.status.running_requests + worker.status.waiting_requests
    return max(known, sent) / max(1, worker.capacity.max_num_seqs)


def _nearness(worker: Worker, digest: str) -> int:
    if not digest:
        return 0
    held = worker.status.held.get(digest)
    if held is not None:
        return _NEARNESS[held.tier]
    # A worker with a slot to spare beats one that must evict.
    return 0 if worker.status.num_resident < worker.capacity.max_loras else -1
