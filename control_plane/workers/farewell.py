"""Farewell: removes what was deleted while workers held it, when none does any more.

Owns which deleted adapters are waited for. Knows no commands: the planner tells workers to let go, as of
whatever no longer exists, and a worker does so when the requests that use it have ended. Every replica
runs one: to remove is a commit that only the first of them makes. Invariant: what is marked as deleted is
removed once no live worker holds it; a worker that is lost holds nothing.
"""

import asyncio

import structlog

from control_plane.registry.changes import ChangeKind
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey
from control_plane.workers.fleet import Fleet
from control_plane.workers.outage import ride_out

_log = structlog.get_logger(__name__)


def is_held(fleet: Fleet, key: AdapterKey) -> bool:
    """Whether any live worker holds a revision of an adapter."""
    return any(held.key == key for _, held in fleet.held(key.tenant))


class Farewell:
    """The adapters that are being deleted, and their end."""

    def __init__(self, registry: Registry, fleet: Fleet) -> None:
        self._registry = registry
        self._fleet = fleet
        self._waited_for: set[AdapterKey] = set()

    async def run(self) -> None:
        """Remove what may go, until cancelled."""
        await ride_out("farewell", self._run)

    async def _run(self) -> None:
        await self._fleet.known()  # before that, nobody seems to hold anything
        version = await self._registry.version()
        self._waited_for = {adapter.key async for adapter in self._registry.deleting()}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_registry(version))
            tasks.create_task(self._follow_fleet())

    async def _follow_registry(self, version: int) -> None:
        async for watched in self._registry.watch(None, version):
            adapter = watched.change.adapter
            if watched.change.kind is ChangeKind.DELETED:
                self._waited_for.discard(adapter.key)  # another replica was first
            elif adapter.deleting:
                self._waited_for.add(adapter.key)
                await self._remove_free()

    async def _follow_fleet(self) -> None:
        await self._remove_free()
        async for _ in self._fleet.watch():
            await self._remove_free()

    async def _remove_free(self) -> None:
        for key in [key for key in self._waited_for if not is_held(self._fleet, key)]:
            await self._registry.remove(key)
            self._waited_for.discard(key)  # after it: one that could not be written is tried again
            _log.info("deleted adapter left every worker", adapter=str(key))
