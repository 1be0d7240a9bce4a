"""Directory: the workers as Redis knows them, the same for every control-plane replica.

Owns the records, their leases (on the store's clock) and the stream of changes. Knows no streams
and no commands. Invariant: only the session that said hello last speaks for a worker; an older
one learns from its next report that it was replaced.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from control_plane.errors import Draining, NotFound
from control_plane.store.client import dedicated
from control_plane.store.script import Script
from control_plane.workers import keys, records
from control_plane.workers.records import Change, Renewal, Sighting
from control_plane.workers.types import StatusChange, Worker, WorkerState

_LUA = Path(__file__).parent / "lua"
_HELLO = Script(_LUA / "hello.lua")
_REPORT = Script(_LUA / "report.lua")
_LOSE = Script(_LUA / "lose.lua")
_INTEND = Script(_LUA / "intend.lua")
_READ = Script(_LUA / "read.lua", read_only=True)

RETENTION_MS = 7 * 24 * 3600 * 1000  # a lost worker stays visible for a week
MAX_CHANGES = 4096  # a reader further behind reads everything anew
BLOCK_MS = 2000  # below the client's reply timeout
_DRAINS = "drains, which cannot be taken back: it ends by itself; start it again to have it take requests"


class Directory:
    """Reads and writes worker records."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def hello(self, worker: Worker, *, lease_s: float) -> None:
        """Store a worker and make its session the one that speaks for it."""
        worker_id = worker.worker_id
        record = (keys.worker(worker_id), keys.WORKER_IDS, keys.WORKER_CHANGES, keys.held(worker_id))
        body = records.body(worker)
        arguments = (worker_id, worker.session, worker.replica, body, _ms(lease_s))
        await _HELLO.run(self._redis, record, (*arguments, RETENTION_MS, MAX_CHANGES, worker.instance_id))

    async def report(
        self, worker: Worker, change: StatusChange | None, *, lease_s: float, whole: bool = False
    ) -> bool:
        """Renew the lease and store what changed; False when another session speaks for the worker.

        With `whole` all that the worker holds is stored anew, whatever the change.
        """
        record = (keys.worker(worker.worker_id), keys.WORKER_CHANGES, keys.held(worker.worker_id))
        arguments = (worker.worker_id, worker.session, _ms(lease_s), RETENTION_MS, MAX_CHANGES)
        written = records.whole(worker) if whole else records.changed(worker, change) if change else ("",)
        return bool(await _REPORT.run(self._redis, record, (*arguments, *written)))

    async def lose(self, worker: Worker) -> None:
        """End the lease of a worker whose stream died, unless a newer session speaks for it."""
        record = (keys.worker(worker.worker_id), keys.WORKER_CHANGES)
        await _LOSE.run(self._redis, record, (worker.worker_id, worker.session, MAX_CHANGES))

    async def intend(self, worker_id: str, state: WorkerState) -> None:
        """Cordon, drain or uncordon; raise NotFound, or Draining for a worker that is to leave already."""
        record = (keys.worker(worker_id), keys.WORKER_CHANGES)
        match await _INTEND.run(self._redis, record, (worker_id, state.value, MAX_CHANGES)):
            case 0:
                raise NotFound("worker", worker_id)
            case -1:
                raise Draining("worker", worker_id, _DRAINS)

    async def read(self, worker_id: str) -> Sighting:
        """Return a worker as it is stored now; raise NotFound."""
        now_ms, session, replica, body, intent, lease_ms, report_ms, version, held = await _READ.run(
            self._redis, (keys.worker(worker_id), keys.held(worker_id))
        )
        if not body:
            raise NotFound("worker", worker_id)
        lease_left_s = max(0.0, (int(lease_ms) - int(now_ms)) / 1000)
        worker = replace(
            records.worker_from(body, held),
            session=session,
            replica=replica,
            state=WorkerState(intent or "ready") if lease_left_s else WorkerState.LOST,
            last_report_s=int(report_ms) / 1000,
            lease_expires_s=int(lease_ms) / 1000,
        )
        return Sighting(worker, lease_left_s, int(version or 0))

    async def worker_ids(self) -> list[str]:
        """Return the ids of all workers, also of lost ones."""
        # redis-py annotates the return as a union with its synchronous client's.
        ids: Any = self._redis.smembers(keys.WORKER_IDS)
        return sorted(await ids)

    async def position(self) -> str:
        """Return where the stream of changes ends now."""
        entries: Any = await self._redis.xrevrange(keys.WORKER_CHANGES, count=1)
        return str(entries[0][0]) if entries else "0-0"

    async def changes(self, position: str) -> AsyncIterator[Change]:
        """Yield every change after a position, for ever."""
        reader = dedicated(self._redis)
        try:
            while True:
                streams: Any = await reader.xread({keys.WORKER_CHANGES: position}, count=256, block=BLOCK_MS)
                entries = records.entries_of(streams)
                for entry in records.needed(entries):
                    change = await self._change(entry)
                    if change is not None:
                        yield change
                position = entries[-1][0] if entries else position
        finally:
            await reader.aclose()

    async def _change(self, entry: dict[str, str]) -> Change | None:
        if entry["what"] == "lease":
            return Renewal(entry["worker"], int(entry["lease_ms"]) / 1000)
        if entry["what"] == "change":
            return records.changed_from(entry)
        try:
            return await self.read(entry["worker"])
        except NotFound:
            return None  # its retention ended since


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
