"""Readiness: what the health service says, kept up to date from what it depends on.

`liveness` is the process itself. `readiness` and Inference need Redis and a live worker, the other
services Redis alone.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog
from grpc_health.v1 import health, health_pb2
from redis.asyncio import Redis

from control_plane.errors import StoreUnavailable
from control_plane.workers.fleet import Fleet

PING_EVERY_S = 1.0  # Redis tells nobody that it has gone
_log = structlog.get_logger(__name__)


class Readiness:
    """Sets the states of a health servicer."""

    def __init__(
        self, redis: Redis, fleet: Fleet, *, with_worker: Iterable[str], with_store: Iterable[str]
    ) -> None:
        self.servicer = health.aio.HealthServicer()
        self._redis = redis
        self._fleet = fleet
        self._with_worker = ("readiness", "", *with_worker)
        self._with_store = tuple(with_store)
        self._changed = asyncio.Event()
        self._said: tuple[bool, bool] | None = None

    async def run(self) -> None:
        """Follow workers and Redis until cancelled."""
        await self._set(("liveness",), True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_workers())
            while True:
                self._changed.clear()
                await self._say(store=await self._store_answers(), worker=self._worker_lives())
                await self._wait()

    async def stop(self) -> None:
        """Say that nothing is served any more, so that nobody sends new calls."""
        await self.servicer.enter_graceful_shutdown()

    async def _follow_workers(self) -> None:
        async for _ in self._fleet.watch():
            if self._said is None or self._said[1] != self._worker_lives():
                self._changed.set()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(PING_EVERY_S):
                await self._changed.wait()
        except TimeoutError:
            return  # time to ask Redis again

    async def _store_answers(self) -> bool:
        try:
            async with asyncio.timeout(PING_EVERY_S):
                ping: Any = self._redis.ping()
                await ping
        except (StoreUnavailable, TimeoutError):
            return False
        return True

    def _worker_lives(self) -> bool:
        return any(worker.live for worker in self._fleet.workers())

    async def _say(self, *, store: bool, worker: bool) -> None:
        if (store, worker) != self._said:
            _log.info("readiness changed", store=store, worker=worker)
            await self._set(self._with_store, store)
            await self._set(self._with_worker, store and worker)
            self._said = (store, worker)

    async def _set(self, services: Iterable[str], serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in services:
            await self.servicer.set(service, status.SERVING if serving else status.NOT_SERVING)
