"""Sweep: the safety net under planning change by change.

Reads every adapter anew and plans it from scratch, a few at a time, one round in `every_s`: a change
that was never heard of, or was taken wrongly, is made good within a round. Knows no commands.
"""

import asyncio

import structlog

from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.workers.fleet import Fleet
from control_plane.workers.picture import Picture
from control_plane.workers.plan_costs import Cause

SIZE = 64  # adapters between two pauses
_log = structlog.get_logger(__name__)


class Sweep:
    """Compares the planner's picture with what there is."""

    def __init__(self, registry: Registry, fleet: Fleet, picture: Picture, *, every_s: float) -> None:
        self._registry = registry
        self._fleet = fleet
        self._picture = picture
        self._every_s = every_s

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self.round()

    async def round(self) -> None:
        """Go once over everything, evenly over the time of a round."""
        pause_s = self._every_s / (len(self._picture.adapters()) // SIZE + 1)
        version, seen = await self._registry.version(), set[AdapterKey]()
        async for adapter in self._registry.all():
            if adapter.deleting:
                continue  # as good as gone: below
            await self._check(adapter)
            seen.add(adapter.key)
            if len(seen) % SIZE == 0:
                await asyncio.sleep(pause_s)
        for key in self._picture.adapters():
            if key not in seen:
                await self._check_deleted(key, version)
        for worker in self._fleet.workers():
            await self._picture.observe(worker.worker_id, Cause.SWEEP)
        await self._picture.recall()
        await asyncio.sleep(pause_s)

    async def _check(self, adapter: Adapter) -> None:
        known = self._picture.adapter(adapter.key)
        if known is None or known.resource_version < adapter.resource_version:
            # Read with others a while ago: deleted since, or is this a change that never came?
            if not await self._picture.exists(adapter.key):
                return
            _log.info("change found by the sweep", adapter=str(adapter.key))
        await self._picture.put(adapter, Cause.SWEEP, anew=True)

    async def _check_deleted(self, key: AdapterKey, version: int) -> None:
        if not await self._picture.exists(key):
            _log.info("deletion found by the sweep", adapter=str(key))
            await self._picture.remove(key, version, Cause.SWEEP)
