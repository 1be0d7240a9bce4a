"""Prefetch: the load of a cold adapter begins when its request is admitted, before it arrives.

A request that goes through the relay brings its adapter along; one whose client goes to the worker
by itself is on its way for a while, and finds it loaded or loading. A hint and nothing more: what
is lost, refused or late costs its request the load it would have had anyway, and no ledger knows
of it. Invariant: one hint a (worker, revision) at a time, and at most MAX_HINTS waiting.
"""

import asyncio

import structlog

from control_plane.errors import NoWorker, StoreUnavailable
from control_plane.placement import commands
from control_plane.placement.commands import Command
from control_plane.registry.types import Target
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.holdings import Tier
from control_plane.workers.leader import Leadership
from control_plane.workers.types import Worker

MAX_HINTS = 256
_Place = tuple[str, str]  # worker and digest
_WARM = frozenset({Tier.SLOT, Tier.CPU})
_log = structlog.get_logger(__name__)


class Prefetch:
    """Tells workers which adapters are on their way to them."""

    def __init__(self, dispatcher: Dispatcher, leadership: Leadership) -> None:
        self._dispatcher = dispatcher
        self._leadership = leadership
        self._waiting: asyncio.Queue[tuple[_Place, Command]] = asyncio.Queue(MAX_HINTS)
        self._hinted: set[_Place] = set()

    def hint(self, target: Target, worker: Worker) -> bool:
        """Begin to load the target on a worker, unless it is in its memory or told already (False)."""
        adapter, revision = target.adapter, target.revision
        if adapter is None or revision is None:
            return False
        held, place = worker.status.held.get(revision.digest), (worker.worker_id, revision.digest)
        if (held is not None and held.tier in _WARM) or place in self._hinted or self._waiting.full():
            return False
        self._hinted.add(place)
        self._waiting.put_nowait((place, commands.load(worker.worker_id, adapter, revision)))
        return True

    @property
    def waiting(self) -> int:
        """How many hints have had no answer yet."""
        return len(self._hinted)

    async def run(self) -> None:
        """Send what is hinted at, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._send(*await self._waiting.get()))

    async def _send(self, place: _Place, command: Command) -> None:
        try:
            outcome = await self._dispatcher.send(command, fencing_token=self._leadership.token)
        except (NoWorker, StoreUnavailable) as error:
            _log.info("prefetch not sent", worker_id=command.worker_id, reason=str(error))
        else:
            if not outcome.ok:
                _log.info("prefetch refused", worker_id=command.worker_id, reason=outcome.reason)
        finally:
            self._hinted.discard(place)
