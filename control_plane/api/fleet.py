"""Fleet: convert, call, convert."""

import time
from collections.abc import AsyncIterator, Callable

from control_plane.api.caller import Context
from control_plane.workers import convert
from control_plane.workers.directory import Directory
from control_plane.workers.fleet import Fleet
from control_plane.workers.types import Worker, WorkerState
from protos.fleet.v1 import fleet_pb2 as pb
from protos.fleet.v1 import fleet_pb2_grpc


class FleetServicer(fleet_pb2_grpc.FleetServicer):
    """Workers as the control plane sees them."""

    def __init__(self, fleet: Fleet, directory: Directory, clock: Callable[[], float] = time.time) -> None:
        self._fleet = fleet
        self._directory = directory
        self._clock = clock  # Unix time

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        """Return all workers."""
        workers = [self._shown(worker) for worker in self._fleet.workers()]
        return pb.ListWorkersResponse(workers=workers)

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> pb.Worker:
        """Return one worker."""
        return self._shown(self._fleet.get(request.worker_id))

    async def CordonWorker(self, request: pb.CordonWorkerRequest, context: Context) -> pb.Worker:
        """Send it nothing new, or again."""
        state = WorkerState.READY if request.uncordon else WorkerState.CORDONED
        return await self._intend(request.worker_id, state)

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> pb.Worker:
        """Cordon it and have it finish; the planner tells it to."""
        return await self._intend(request.worker_id, WorkerState.DRAINING)

    async def WatchWorkers(
        self, request: pb.WatchWorkersRequest, context: Context
    ) -> AsyncIterator[pb.WorkerEvent]:
        """Stream every worker, then every change."""
        async for worker in self._fleet.watch():
            yield pb.WorkerEvent(worker=self._shown(worker))

    async def _intend(self, worker_id: str, state: WorkerState) -> pb.Worker:
        await self._directory.intend(worker_id, state)
        await self._fleet.refresh(worker_id)
        return self._shown(self._fleet.get(worker_id))

    def _shown(self, worker: Worker) -> pb.Worker:
        return convert.worker_to_proto(worker, self._clock())
