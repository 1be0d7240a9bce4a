"""Fleet: workers and what they hold, as this replica knows them, at every scrape.

What one worker does in detail is on its own metrics port. Values are this replica's copy, so every
replica says the same but for `loraplane_leader`; aggregate with `max`, not `sum`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from control_plane.workers.holdings import Tier
from control_plane.workers.types import Worker, WorkerState


class FleetCollector(Collector):
    """The fleet as metrics."""

    def __init__(self, workers: Callable[[], Sequence[Worker]], leads: Callable[[], bool]) -> None:
        self._workers = workers
        self._leads = leads

    def collect(self) -> Iterable[Metric]:
        """Called by a scrape, on its own thread; a worker is an immutable value."""
        workers = self._workers()
        yield GaugeMetricFamily("loraplane_leader", "Whether this replica plans", int(self._leads()))
        states = Counter(worker.state for worker in workers)
        known = GaugeMetricFamily("loraplane_workers", "Workers by state", labels=("state",))
        for state in WorkerState:
            known.add_metric((state.value,), states[state])
        yield known
        live = [worker for worker in workers if worker.live]
        yield _load(live)
        yield _slots(live)
        yield _residency(live)


def _load(workers: Sequence[Worker]) -> Metric:
    load = GaugeMetricFamily(
        "loraplane_worker_requests", "Requests on each live worker", labels=("worker", "state")
    )
    for worker in workers:
        load.add_metric((worker.worker_id, "running"), worker.status.running_requests)
        load.add_metric((worker.worker_id, "waiting"), worker.status.waiting_requests)
    return load


def _slots(workers: Sequence[Worker]) -> Metric:
    """Slot pressure, which an autoscaler reads."""
    slots = GaugeMetricFamily(
        "loraplane_worker_slots", "Slots of each live worker", labels=("worker", "state")
    )
    for worker in workers:
        taken = worker.status.num_resident
        slots.add_metric((worker.worker_id, "taken"), taken)
        slots.add_metric((worker.worker_id, "free"), worker.capacity.max_loras - taken)
    return slots


def _residency(workers: Sequence[Worker]) -> Metric:
    holders: Counter[tuple[str, str, Tier]] = Counter(
        (held.key.tenant, held.key.name, held.tier) for worker in workers for held in worker.status.adapters
    )
    residency = GaugeMetricFamily(
        "loraplane_adapter_holders",
        "Live workers that hold an adapter, by the fastest tier that has it",
        labels=("tenant", "adapter", "tier"),
    )
    for (tenant, name, tier), number in holders.items():
        residency.add_metric((tenant, name, tier.value), number)
    return residency
