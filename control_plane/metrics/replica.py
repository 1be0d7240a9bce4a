"""Replica: all metrics of one control-plane process, put together."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from control_plane.metrics.calls import CallMetrics
from control_plane.metrics.fleet import FleetCollector
from control_plane.workers.types import Worker


class ReplicaMetrics:
    """One registry, what writes into it and what it reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.calls = CallMetrics(self.registry)

    def read_fleet(self, workers: Callable[[], Sequence[Worker]], leads: Callable[[], bool]) -> None:
        """Take what this replica knows of the fleet into every scrape from now on."""
        self.registry.register(FleetCollector(workers, leads))
