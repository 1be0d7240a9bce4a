"""Operator: load, evict and reload on workers now, with each one's answer.

These are commands, not desired state. Load and Reload agree with what the planner wants anyway. An
eviction goes against it, so it is written to the ledger as the answer to the offer it undoes: the
adapter stays out of that worker until a request wants it, its generation changes or the worker
starts anew.
"""

import asyncio
from collections.abc import Sequence

from control_plane.errors import InvalidArgument, NotFound, NoWorker, Refused, StoreUnavailable
from control_plane.placement import commands
from control_plane.placement.commands import Command
from control_plane.placement.plan import holders
from control_plane.registry.types import Adapter, ReloadPolicy
from control_plane.workers.dispatch import Dispatcher
from control_plane.workers.fleet import Fleet
from control_plane.workers.leader import Leadership
from control_plane.workers.ledger import Ledger
from control_plane.workers.types import Outcome, Report, Worker


class Operator:
    """Carries out what an operator asks of workers."""

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        ledger: Ledger,
        leadership: Leadership,
        *,
        num_holders: int,
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._leadership = leadership
        self._num_holders = num_holders

    async def load(self, adapter: Adapter, worker_ids: Sequence[str], *, inplace: bool) -> tuple[Report, ...]:
        """Load the current revision; `inplace` reads its source again where it is loaded.

        Raises Refused for one that is not READY.
        """
        _check_ready(adapter)
        workers = self._named(worker_ids) or self._placed(adapter)
        return await self._all(
            workers,
            [
                commands.reload(worker.worker_id, adapter)
                if inplace and adapter.current.digest in worker.status.held
                else commands.load(worker.worker_id, adapter)
                for worker in workers
            ],
        )

    async def evict(
        self, adapter: Adapter, worker_ids: Sequence[str], *, cancel_running: bool
    ) -> tuple[Report, ...]:
        """Evict every revision of the adapter, from all that hold one unless workers are named."""
        workers = self._named(worker_ids) or self._holding(adapter)
        await self._write_off(adapter, workers)
        evictions = [
            (worker, commands.evict(worker.worker_id, adapter, digest, cancel_running=cancel_running))
            for worker in workers
            for digest in _held_digests(worker, adapter)
        ]
        return await self._all([worker for worker, _ in evictions], [command for _, command in evictions])

    async def reload(
        self, adapter: Adapter, worker_ids: Sequence[str], *, policy: ReloadPolicy
    ) -> tuple[Report, ...]:
        """Read the current revision anew, on all that hold the adapter unless workers are named.

        Raises Refused for one that is not READY.
        """
        _check_ready(adapter)
        workers = self._named(worker_ids) or self._holding(adapter)
        return await self._all(
            workers, [commands.reload(worker.worker_id, adapter, policy=policy) for worker in workers]
        )

    async def _all(self, workers: Sequence[Worker], given: Sequence[Command]) -> tuple[Report, ...]:
        reports = [self._report(worker, command) for worker, command in zip(workers, given, strict=True)]
        return tuple(await asyncio.gather(*reports))

    async def _report(self, worker: Worker, command: Command) -> Report:
        try:
            outcome = await self._dispatcher.send(command, fencing_token=self._leadership.token)
        except (NoWorker, StoreUnavailable) as error:
            # The other workers' answers are there: one lost letter to a replica must not take them along.
            outcome = Outcome(ok=False, reason=str(error))
        return Report(worker.worker_id, outcome)

    async def _write_off(self, adapter: Adapter, workers: Sequence[Worker]) -> None:
        for worker in workers:
            offer = commands.load(worker.worker_id, adapter)
            await self._ledger.record(worker, offer, Outcome(ok=True, reason="evicted by an operator"))

    def _named(self, worker_ids: Sequence[str]) -> list[Worker]:
        workers = [self._fleet.get(worker_id) for worker_id in worker_ids]
        for worker in workers:
            if not worker.live:
                raise InvalidArgument("worker_ids", worker.worker_id, "is lost")
        return workers

    def _placed(self, adapter: Adapter) -> list[Worker]:
        chosen = holders(adapter, self._fleet.workers(), num_holders=self._num_holders)
        if not chosen:
            raise NotFound("worker", adapter.base_model, "has no ready worker that could hold the adapter")
        return [self._fleet.get(worker_id) for worker_id in chosen]

    def _holding(self, adapter: Adapter) -> list[Worker]:
        return [worker for worker in self._fleet.workers() if worker.live and _held_digests(worker, adapter)]


def _check_ready(adapter: Adapter) -> None:
    if not adapter.current.ready:
        raise Refused(f"adapter {str(adapter.key)!r} is {adapter.current.state.value}: publish it first")


def _held_digests(worker: Worker, adapter: Adapter) -> list[str]:
    return [held.digest for held in worker.status.adapters if held.key == adapter.key]
