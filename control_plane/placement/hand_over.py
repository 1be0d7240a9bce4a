"""Hand-over: whether a draining worker has nothing left that others need. Pure.

What it holds in memory is handed over when a ready worker of the same base model has it in memory too,
or when there is none that could.
"""

from collections.abc import Iterable

from control_plane.workers.holdings import HeldAdapter, Tier
from control_plane.workers.types import Worker, WorkerState

_MEMORY = frozenset({Tier.SLOT, Tier.CPU})


def is_handed_over(worker: Worker, fleet: Iterable[Worker]) -> bool:
    """Whether the worker's requests have ended and others hold what it holds."""
    status = worker.status
    if status.running_requests or status.waiting_requests:
        return False
    heirs = [
        other
        for other in fleet
        if other.state is WorkerState.READY
        and other.worker_id != worker.worker_id
        and other.base_model == worker.base_model
    ]
    return not heirs or all(
        any(_in_memory(heir.status.held.get(held.digest)) for heir in heirs)
        for held in status.adapters
        if _in_memory(held)
    )


def _in_memory(held: HeldAdapter | None) -> bool:
    return held is not None and held.tier in _MEMORY
