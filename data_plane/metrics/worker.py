"""Worker: all metrics of one worker process, put together."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from data_plane.engine.events import EngineStatus
from data_plane.metrics.engine import Capacities, EngineCollector, LoadMetrics
from data_plane.metrics.requests import RequestMetrics
from data_plane.metrics.routers import RouterCollector


class WorkerMetrics:
    """One registry, what writes into it and what it reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.requests = RequestMetrics(self.registry, time.monotonic)
        self.loads = LoadMetrics(self.registry)

    def read_engine(
        self,
        status: Callable[[], EngineStatus],
        capacities: Capacities,
        *,
        model: str,
        block_size: int,
    ) -> None:
        """Take the engine's latest status into every scrape from now on."""
        self.registry.register(EngineCollector(status, capacities))
        self.registry.register(
            RouterCollector(
                status,
                self.requests.by_adapter,
                capacities,
                model=model,
                block_size=block_size,
                now=time.time,
            )
        )
