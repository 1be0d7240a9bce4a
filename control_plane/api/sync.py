"""WorkerSync: a worker's stream to its session."""

from collections.abc import AsyncIterator

from control_plane.api.caller import Context
from control_plane.workers.sessions import Sessions
from protos.sync.v1 import sync_pb2 as pb
from protos.sync.v1 import sync_pb2_grpc


class SyncServicer(sync_pb2_grpc.WorkerSyncServicer):
    """One session a stream."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Sync(  # type: ignore[override] # writes instead of yielding, see CallInterceptor
        self,
        request_iterator: AsyncIterator[pb.WorkerMessage],
        context: Context,
    ) -> None:
        """Serve a worker until its stream ends."""
        await self._sessions.serve(request_iterator, context.write)
