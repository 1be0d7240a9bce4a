"""Fleet: this replica's copy of all workers, kept by the directory's stream of changes.

Every request reads it, so it is in memory and always a whole worker, never half an update. Owns
when a lease has run out here: measured on the local clock from the moment a renewal arrived, so
clocks of machines need not agree. Invariant: a worker whose lease ran out is LOST in here even
when Redis is silent.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from control_plane.errors import NotFound
from control_plane.workers.directory import Directory
from control_plane.workers.held import HeldByTenant
from control_plane.workers.holdings import HeldAdapter
from control_plane.workers.outage import ride_out
from control_plane.workers.records import Changed, Renewal, Sighting
from control_plane.workers.types import HeldBytes, Worker, WorkerState
from control_plane.workers.watchers import Keys, Watcher


class Fleet:
    """All workers as last heard of."""

    def __init__(self, directory: Directory, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._clock = clock
        self._workers: dict[str, Worker] = {}
        self._listed: tuple[Worker, ...] | None = ()  # by id; None: something changed since
        self._held = HeldByTenant()
        self._versions: dict[str, int] = {}  # of the records that the workers are as in
        self._leases: dict[str, float] = {}  # worker → end of its lease on the local clock; live ones only
        self._leases_changed = asyncio.Event()
        self._watchers: set[Watcher] = set()
        self._known = asyncio.Event()

    def workers(self) -> Sequence[Worker]:
        """Return all workers by id, lost ones too."""
        if self._listed is None:  # every request asks: sorted once a change
            self._listed = tuple(self._workers[worker_id] for worker_id in sorted(self._workers))
        return self._listed

    def get(self, worker_id: str) -> Worker:
        """Return one worker; raise NotFound."""
        try:
            return self._workers[worker_id]
        except KeyError:
            raise NotFound("worker", worker_id) from None

    def base_models(self) -> set[str]:
        """Return the models that workers serve or, when lost, served."""
        return {worker.base_model for worker in self._workers.values()}

    def base_workers(self) -> list[Worker]:
        """Return one worker of each base model, live ones first."""
        by_model: dict[str, Worker] = {}
        for worker in sorted(self.workers(), key=lambda worker: not worker.live):
            by_model.setdefault(worker.base_model, worker)
        return list(by_model.values())

    def only_base_model(self) -> str:
        """Return the base model when all workers serve one; else nothing."""
        models = self.base_models()
        return models.pop() if len(models) == 1 else ""

    def held_bytes(self, tenant: str) -> HeldBytes:
        """Return what live workers hold of a tenant's adapters."""
        return self._held.bytes_of(tenant)

    def held(self, tenant: str) -> Iterator[tuple[str, HeldAdapter]]:
        """Yield worker and adapter of everything that live workers hold of a tenant's."""
        return self._held.of(tenant)

    async def known(self) -> None:
        """Wait until the present state was read once."""
        await self._known.wait()

    async def watch(self) -> AsyncIterator[Worker]:
        """Yield every worker, then each one again when it changed. A slow reader skips states."""
        async with aclosing(self.follow()) as changes:
            async for worker_id, _ in changes:
                yield self._workers[worker_id]

    async def follow(self) -> AsyncGenerator[tuple[str, Keys], None]:
        """Yield the id of every worker, then of each that changed, with the adapters that it is about."""
        watcher = Watcher(self._workers)
        self._watchers.add(watcher)
        try:
            while True:
                for change in (await watcher.take()).items():
                    yield change
        finally:
            self._watchers.discard(watcher)

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ride_out("fleet", self._follow))
            tasks.create_task(self._expire())

    async def refresh(self, worker_id: str) -> None:
        """Read one worker now, ahead of its change in the stream."""
        self._apply(await self._directory.read(worker_id))

    async def _follow(self) -> None:
        position = await self._directory.position()
        for worker_id in await self._directory.worker_ids():
            try:
                sighting = await self._directory.read(worker_id)
            except NotFound:
                continue  # its retention ended
            # After an outage every stored lease has run out. One that runs here ends here, if nobody
            # renews it.
            if sighting.lease_left_s or worker_id not in self._leases:
                self._apply(sighting)
        self._known.set()
        async for change in self._directory.changes(position):
            match change:
                case Sighting():
                    self._apply(change)
                case Changed():
                    await self._change(change)
                case Renewal():
                    self._renew(change)

    def heard(self, worker: Worker, lease_s: float) -> None:
        """Take what a worker said to this very process while Redis is away."""
        self._apply(Sighting(worker, lease_s))

    def _apply(self, sighting: Sighting) -> None:
        worker = sighting.worker
        self._versions[worker.worker_id] = sighting.version
        self._set(worker)
        self._held.replace(worker)
        self._extend(worker.worker_id, sighting.lease_left_s)
        self._announce(worker.worker_id)

    async def _change(self, changed: Changed) -> None:
        worker_id, known = changed.worker_id, self._versions.get(changed.worker_id, 0)
        worker = self._workers.get(worker_id)
        if worker is None or not worker.live or changed.version > known + 1:
            with suppress(NotFound):  # its retention ended since
                await self.refresh(worker_id)  # what this change builds on was never seen here
        elif changed.version == known + 1:
            self._versions[worker_id] = known + 1
            self._take(worker, changed)
        # Else it was read with its record.

    def _take(self, worker: Worker, changed: Changed) -> None:
        change, before = changed.change, worker.status
        gone = [before.held[digest] for digest in change.gone if digest in before.held]
        now = replace(worker, status=before.after(change), last_report_s=changed.reported_s)
        self._set(replace(now, lease_expires_s=changed.reported_s + changed.lease_left_s))
        self._held.change(worker.worker_id, change.status.adapters, gone)
        self._extend(worker.worker_id, changed.lease_left_s)
        self._announce(worker.worker_id, {held.key for held in (*change.status.adapters, *gone)})

    def _renew(self, renewal: Renewal) -> None:
        worker = self._workers.get(renewal.worker_id)
        # A lost worker comes back by its hello, which is a whole record.
        if worker is not None and worker.live:
            self._extend(renewal.worker_id, renewal.lease_left_s)

    def _extend(self, worker_id: str, lease_left_s: float) -> None:
        if lease_left_s > 0:
            self._leases[worker_id] = self._clock() + lease_left_s
        else:
            self._leases.pop(worker_id, None)
        self._leases_changed.set()

    async def _expire(self) -> None:
        while True:
            self._leases_changed.clear()
            earliest = min(self._leases.values(), default=None)
            try:
                async with asyncio.timeout(None if earliest is None else max(0, earliest - self._clock())):
                    await self._leases_changed.wait()
            except TimeoutError:
                self.expire()

    def expire(self) -> None:
        """Mark every worker whose lease ran out as lost."""
        now = self._clock()
        for worker_id in [worker_id for worker_id, end in self._leases.items() if end <= now]:
            del self._leases[worker_id]
            lost = replace(self._workers[worker_id], state=WorkerState.LOST)
            self._set(lost)
            self._held.replace(lost)
            self._announce(worker_id)

    def _set(self, worker: Worker) -> None:
        self._workers[worker.worker_id] = worker
        self._listed = None

    def _announce(self, worker_id: str, keys: Keys = None) -> None:
        for watcher in self._watchers:
            watcher.tell(worker_id, keys)
