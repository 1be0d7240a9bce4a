"""Engine: what the engine holds and does, from its latest status, at every scrape.

The status is an immutable value that the step loop makes anyway; nothing is counted for metrics alone
but the seconds of a load.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from data_plane.adapters.revision import Tier
from data_plane.engine.events import EngineStatus, HeldAdapter

_LOADS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacities:
    """What the worker can hold. Fixed at its start."""

    slots: int
    slot_bytes: int
    cpu_bytes: int
    disk_bytes: int
    kv_blocks: int


class LoadMetrics:
    """Seconds of every load, told by the step loop as it takes the load in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "loraplane_adapter_load_seconds",
            "Loads by the tier they read: source and disk into the CPU cache, cpu into a slot",
            ["tier"],
            buckets=_LOADS_S,
            registry=registry,
        )

    def loaded(self, tier: Tier, seconds: float) -> None:
        """A load from this tier has ended; two microseconds."""
        self._seconds.labels(tier.value).observe(seconds)


class EngineCollector(Collector):
    """The engine's status as metrics."""

    def __init__(self, status: Callable[[], EngineStatus], capacities: Capacities) -> None:
        self._status = status
        self._capacities = capacities

    def collect(self) -> Iterable[Metric]:
        """Called by a scrape, on its own thread."""
        status, room = self._status(), self._capacities
        yield from _adapters(status.adapters)
        yield _gauge(
            "loraplane_tier_used_bytes",
            "Bytes taken in each tier; slot is the rank pool and what lies beside it",
            "tier",
            {"slot": status.slot_bytes_used, "cpu": status.cpu_bytes_used, "disk": status.disk_bytes_used},
        )
        yield _gauge(
            "loraplane_tier_capacity_bytes",
            "Bytes there are in each tier",
            "tier",
            {"slot": room.slot_bytes, "cpu": room.cpu_bytes, "disk": room.disk_bytes},
        )
        yield GaugeMetricFamily("loraplane_slots", "Adapters that can be resident at once", room.slots)
        yield _counter(
            "loraplane_adapter_evictions",
            "Revisions that left a tier, by need or by command",
            "tier",
            {
                "slot": status.slot_evictions,
                "cpu": status.cpu_evictions,
                "disk": status.disk_evictions,
            },
        )
        yield GaugeMetricFamily(
            "loraplane_rank_pool_fragmentation_ratio",
            "Share of the free pages outside of their longest run; 0: one run",
            status.pool_fragmentation,
        )
        yield _gauge(
            "loraplane_engine_requests",
            "Requests in the engine now",
            "state",
            {"running": status.running_requests, "waiting": status.waiting_requests},
        )
        yield GaugeMetricFamily("loraplane_kv_blocks", "Blocks of the KV cache", room.kv_blocks)
        yield GaugeMetricFamily("loraplane_kv_blocks_free", "Those that are free", status.free_blocks)
        yield CounterMetricFamily("loraplane_steps", "Steps computed", status.steps)
        yield CounterMetricFamily(
            "loraplane_computed_tokens", "Tokens computed, of prompts too", status.computed_tokens
        )
        yield CounterMetricFamily("loraplane_cold_loads", "Reads of a source", status.cold_loads)


def _adapters(adapters: tuple[HeldAdapter, ...]) -> Iterator[Metric]:
    size = GaugeMetricFamily(
        "loraplane_adapter_bytes",
        "Bytes of each revision in each tier that has it",
        labels=("tenant", "adapter", "revision", "tier"),
    )
    leases = GaugeMetricFamily(
        "loraplane_adapter_leases",
        "Running requests of each resident revision",
        labels=("tenant", "adapter", "revision"),
    )
    held = dict.fromkeys(("slot", "cpu", "disk"), 0)
    for one in adapters:
        name = (one.revision.tenant, one.revision.name, str(one.revision.number))
        held[one.tier.value] += 1
        for tier, num_bytes in (("slot", one.slot_bytes), ("cpu", one.cpu_bytes), ("disk", one.disk_bytes)):
            if num_bytes:
                size.add_metric((*name, tier), num_bytes)
        if one.tier is Tier.SLOT:
            leases.add_metric(name, one.leases)
    yield size
    yield leases
    yield _gauge("loraplane_adapters", "Revisions held, by the fastest tier that has them", "tier", held)


def _gauge(name: str, meaning: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family


def _counter(name: str, meaning: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family
