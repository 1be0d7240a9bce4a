"""SimulatedWorker: one of many without a model: no Inference server, reports as seldom as a real one."""

import asyncio
from collections.abc import Sequence

import grpc

from protos.fleet.v1 import fleet_pb2 as fleet
from protos.sync.v1 import sync_pb2 as sync
from tests.control_plane.fake_worker import FakeWorker

REPORT_EVERY_S = 0.05  # as the real worker: changes within it are one report
RECONNECT_S = 0.1


class SimulatedWorker(FakeWorker):
    """Keeps a Sync stream with the first of some control planes that takes it."""

    def __init__(self, worker_id: str, key: str, channels: Sequence[grpc.aio.Channel]) -> None:
        super().__init__("", key, worker_id, cpu_bytes=1 << 40)
        self.address = "127.0.0.1:1"  # nobody sends it requests
        self.num_reports = 0
        self.num_connects = 0
        self._channels = list(channels)
        self._told: dict[str, fleet.HeldAdapter] = {}
        self._sequence = 0  # of the reports of this stream
        self._whole = True  # the next one

    async def begin(self) -> None:
        """Connect, and go on connecting."""
        self._tasks = [asyncio.create_task(self._stay())]

    async def _stay(self) -> None:
        while True:
            self._channel = self._channels[0]
            self._outbox = asyncio.Queue()
            self._told, self._sequence, self._whole = {}, 0, True
            self.leases.clear()
            self.num_connects += 1
            await self._sync()
            self._channels = [*self._channels[1:], self._channels[0]]
            await asyncio.sleep(RECONNECT_S)

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.leases:  # welcomed: a real one says nothing before, either
                self._outbox.put_nowait(sync.WorkerMessage(observed=self._observed()))
                self.num_reports += 1
            await asyncio.sleep(REPORT_EVERY_S)

    def tell_whole(self) -> None:
        """The next report is whole."""
        self._told, self._whole = {}, True
        super().tell_whole()

    def _observed(self) -> sync.ObservedState:
        """What differs from the last report of this stream."""
        changed = [held for digest, held in self.held.items() if self._told.get(digest) is not held]
        gone = [digest for digest in self._told if digest not in self.held]
        self._sequence += 1
        self._told, whole, self._whole = dict(self.held), self._whole, False
        return sync.ObservedState(
            status=fleet.WorkerStatus(adapters=changed, cpu_bytes_used=self._num_bytes()),
            sequence=self._sequence,
            changes_only=not whole,
            gone_digests=gone,
        )

    def _num_bytes(self) -> int:
        return sum(held.cpu_bytes for held in self.held.values())
